"""Runs of several processes on this machine, as users start them: each is a program of its own."""

import socket
import subprocess
import sys
from pathlib import Path

from tests.flags import environment

ROOT = Path(__file__).parents[2]
STEPS, BATCH = 8, 32


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(arguments, processes=1, devices=1, program=("-m", "ssl_jax", "train")):
    """The processes of a run, each with so many devices; `arguments`: of all, or index -> those of one."""
    address = f"127.0.0.1:{free_port()}"
    started = []
    for index in range(processes):
        own = arguments(index) if callable(arguments) else arguments
        joining = [f"--coordinator={address}", f"--num_processes={processes}", f"--process_id={index}"]
        started.append(
            subprocess.Popen(
                [sys.executable, *program, *own, *(joining if processes > 1 else [])],
                cwd=ROOT,
                env=environment(devices),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return started


def finish(started, timeout=600):
    """[(exit code, output)]; none is left running."""
    try:
        return [(process.wait(timeout), process.stdout.read()) for process in started]
    finally:
        for process in started:
            process.kill()


def arguments(workdir, name="simclr", steps=STEPS, **changes):
    settings = {
        "batch_size": BATCH,
        "steps": steps,
        "log_every": 1,
        "evaluate_every": 0,
        "checkpoint_every": 2,
        "data.split": "train[:2%]",
        "online_knn.bank": 200,
        "online_knn.queries": 100,
        **changes,
    }
    return [
        f"--config={name}:tiny",
        f"--workdir={workdir}",
        *(f"--config.{key}={value}" for key, value in settings.items()),
    ]


def small(name):
    """Networks that compile fast, and steps so small that rounding does not grow in them."""
    own = {"mae": {"model.dim": 48, "model.depth": 1, "evaluate_every": 4}, "moco_v2": {"method.queue_size": 960}}
    network = {} if name == "mae" else {"model.width": 0.5, "model.stages": "(1,)"}
    return {"optimizer.lr": 1e-5, "optimizer.warmup_steps": 0, **network, **own.get(name, {})}

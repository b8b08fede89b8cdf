"""Runs killed at random instants, and what becomes of them: python benchmarks/kill.py [--runs 50] [--bucket s3]

Each run is a small pre-training of one or two processes with two devices each. It is killed once, by SIGKILL or
SIGTERM, one process of it or all, at a random instant of a phase: starting, compiling, stepping, saving or evaluating.
Started again with the same command it must finish, and end with the bytes of the unbroken run on the same devices:
weights, the whole of the last checkpoint, and metrics.jsonl but for its times. With --bucket, the workdirs of the runs
that are killed are in an object store on this machine. Prints a line a run and then the counts.
"""

import argparse
import collections
import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from ssl_jax import paths, pretraining
from ssl_jax.cli import train
from ssl_jax.training import orbax_stores
from ssl_jax.training.checkpoint import Checkpoints
from ssl_jax.workdir.metrics import TIMES, read_metrics

ROOT = Path(__file__).parents[1]
STEPS, DEVICES = 30, 2
SETTINGS = {
    "batch_size": 16,
    "steps": STEPS,
    "log_every": 2,
    "evaluate_every": 10,
    "checkpoint_every": 7,
    "model.width": 0.25,
    "augment.view.size": "(16,16)",
    "data.image_size": "(16,16)",
    "data.split": "train[:1%]",
    "online_knn.bank": 300,
    "online_knn.queries": 100,
}
SIGNALS = (signal.SIGKILL, signal.SIGTERM)
# Phase -> what is printed at its beginning and at its end.
PHASES = {
    "start": ("begun", "compiling"),
    "compile": ("compiling", "step  1/"),
    "step": (r"step +\d+/", r"step +\d+/"),
    "save": ("saving", r"step +\d+/|finished"),  # it is written in the background
    "evaluation": ("evaluating", "evaluated"),
}
PATIENCE = 240.0  # seconds, after which a process counts as hung; JAX notices one that is gone after 100


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workdir", type=Path, help="kept; by default a temporary directory")
    parser.add_argument("--bucket", choices=("gs", "s3"), help="kind of store; by default none")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        root = (arguments.workdir or Path(stack.enter_context(tempfile.TemporaryDirectory()))).absolute()
        killed = root
        if arguments.bucket:
            sys.path.insert(0, str(ROOT))
            from tests.stores import emulators

            killed = paths.path(stack.enter_context(emulators.here(arguments.bucket)))
        sys.exit(kill_runs(root, killed, arguments.runs, random.Random(arguments.seed)))


def kill_runs(root, killed, count, rng):
    """root: of the unbroken runs. killed: of the others."""
    unbroken = {}
    for processes in (1, 2):
        unbroken[processes] = Running(root / f"unbroken-{processes}", processes)
        codes = unbroken[processes].wait()
        if any(codes):
            sys.exit(f"the unbroken run of {processes} process(es) ended with {codes}: {unbroken[processes].text}")
        print(f"unbroken, {processes} process(es): {unbroken[processes].lines[-1][0]:.0f} s", flush=True)
    outcomes = collections.Counter()
    for number in range(count):
        processes, kill_with, phase = rng.choice((1, 2)), rng.choice(SIGNALS), rng.choice(list(PHASES))
        victims = rng.sample(range(processes), rng.randint(1, processes))
        outcome = kill_one(killed / f"run-{number}", unbroken[processes], kill_with, phase, victims, rng)
        how = (kill_with.name, phase, f"{len(victims)} of {processes} process(es)")
        print(f"run {number}: {', '.join(how)}: {outcome}", flush=True)
        outcomes[(*how, outcome.split(":")[0])] += 1
    for (*how, outcome), n in sorted(outcomes.items()):
        print(f"{n:>4}  {'  '.join(how)}  {outcome}")
    identical = sum(n for (*_, outcome), n in outcomes.items() if outcome == "identical")
    print(f"{identical} of {count} runs ended bit-identical to the unbroken one")
    return identical != count


def kill_one(workdir, unbroken, kill_with, phase, victims, rng):
    """What became of the run: "identical: ...", or what differs."""
    begins, ends = PHASES[phase]
    spans = unbroken.spans(begins, ends)
    begin, length = rng.choice(list(enumerate(spans)))
    cache = unbroken.cache
    running = Running(workdir, unbroken.processes, cache=cache, cached=phase != "compile")
    reached = running.reach(begins, begin)
    time.sleep(rng.uniform(0.0, length))
    for victim in victims:
        running.started[victim].send_signal(kill_with)
    codes = running.wait(PATIENCE)
    if None in codes:
        return f"hung: {codes}\n{running.text}"
    if kill_with is signal.SIGTERM and phase != "start" and any(codes):
        return f"stopped with an error: {codes}\n{running.text}"
    again = Running(workdir, unbroken.processes, cache=cache)
    if any(again.wait()):
        return f"does not go on: {again.text}"
    goes_on = re.search(r"steps (\d+) to", again.text)  # not where the last step was saved already
    step = int(goes_on[1]) - 1 if goes_on else STEPS
    different = differences(unbroken.workdir, workdir)
    where = f"ended with {codes}{'' if reached else ' before that'}, went on from step {step}"
    return f"different: {different}; {where}" if different else f"identical: {where}"


def differences(expected, found):
    """Names of what is not the same in two workdirs."""
    names = []
    for name in ("backbone.safetensors", "backbone.json"):
        if (expected / name).read_bytes() != (found / name).read_bytes():
            names.append(name)
    if metrics_of(expected) != metrics_of(found):
        names.append("metrics.jsonl")
    pair = [jax.tree_util.tree_leaves_with_path(last_state(workdir)) for workdir in (expected, found)]
    for (path, a), (_, b) in zip(*pair, strict=True):
        if not np.array_equal(a, b, equal_nan=True):
            names.append(f"checkpoint{jax.tree_util.keystr(path)}")
    return names


def metrics_of(workdir):
    lines = read_metrics(workdir / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def last_state(workdir):
    """The arrays of the checkpoint of the last step, as they were saved."""
    orbax_stores.enable()
    with ocp.StandardCheckpointer() as checkpointer:
        path = workdir / "checkpoints" / str(STEPS) / "state"
        saved = checkpointer.metadata(path).item_metadata
    restore = ocp.args.PyTreeRestore(
        restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(path, args=restore)


class Running:
    """The processes of a run, and what the first of them prints, each line with its second."""

    def __init__(self, workdir, processes, *, cache=None, cached=True):
        self.workdir, self.processes, self.cache = workdir, processes, cache or workdir.parent / "cache"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}",
            "JAX_COMPILATION_CACHE_DIR": str(self.cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_ENABLE_COMPILATION_CACHE": str(cached).lower(),
        }
        config = ["--config=simclr:tiny", f"--workdir={workdir}"]
        config += [f"--config.{key}={value}" for key, value in SETTINGS.items()]
        self.started, self.lines = [], []
        self._begun, self._news = time.monotonic(), threading.Condition()
        for index in range(processes):
            joining = [f"--coordinator={address}", f"--num_processes={processes}", f"--process_id={index}"]
            command = [sys.executable, __file__, "child", *config, *(joining if processes > 1 else [])]
            printed = subprocess.PIPE if index == 0 else subprocess.DEVNULL
            self.started.append(
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=environment,
                    stdout=printed,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                )
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.started[0].stdout:
            with self._news:
                self.lines.append((time.monotonic() - self._begun, line.rstrip()))
                self._news.notify_all()

    @property
    def text(self):
        return "\n".join(line for _, line in self.lines)

    def _seconds(self, marker):
        return [second for second, line in self.lines if re.match(marker, line)]

    def spans(self, begins, ends):
        """Lengths in seconds of a phase, each time that it came."""
        ended = self._seconds(ends)
        return [min(later) - begun for begun in self._seconds(begins) if (later := [e for e in ended if e > begun])]

    def reach(self, marker, times):
        """Whether the marker was printed `times` times before, and once more; at most until the run ends."""
        with self._news:
            while len(self._seconds(marker)) <= times and self._reader.is_alive():
                self._news.wait(0.05)
            return len(self._seconds(marker)) > times

    def wait(self, seconds=1800.0):
        """The exit codes; None for a process that had to be killed after so many seconds."""
        deadline, codes = time.monotonic() + seconds, []
        for process in self.started:
            try:
                codes.append(process.wait(max(deadline - time.monotonic(), 0.1)))
            except subprocess.TimeoutExpired:
                codes.append(None)
                process.kill()
                process.wait()
        self._reader.join()
        return codes


def child(arguments):
    """ssl_jax train that says when it saves and evaluates."""

    make_knn, save = pretraining.make_online_knn, Checkpoints.save

    def make_telling(*args):
        evaluate = make_knn(*args)

        def evaluating(state):
            print("evaluating", flush=True)
            result = evaluate(state)
            print("evaluated", flush=True)
            return result

        return evaluating

    def saving(*args):
        print("saving", flush=True)
        save(*args)

    print("begun", flush=True)
    pretraining.make_online_knn, Checkpoints.save = make_telling, saving
    train.main(arguments)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2:])
    else:
        main()

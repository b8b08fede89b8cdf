"""Runs whose images and workdir are in a bucket, as users start them: each process is a program of its own."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from ssl_jax import paths
from ssl_jax.workdir.metrics import TIMES, read_metrics
from tests import flags
from tests.data.kinds import png
from tests.stores import emulators, faults

ROOT = Path(__file__).parents[2]
STEPS = 40
SETTINGS = {
    "batch_size": 16,
    "steps": STEPS,
    "log_every": 1,
    "evaluate_every": 0,
    "checkpoint_every": 4,
    "model.width": 0.25,
    "model.stages": "(1,)",
    "augment.view.size": "(16,16)",
    "data.image_size": "(16,16)",
    "data.name": "folder",
    "data.channels": 1,
    "data.memory_bytes": 0,  # images are read at each step
}
SLOWLY = (  # a step takes long enough for a kill in its middle
    "import sys, time; from ssl_jax.training import progress; from ssl_jax.cli import train; "
    "step = progress.Progress.step; "
    "progress.Progress.step = lambda *args, **kwargs: (time.sleep(0.1), step(*args, **kwargs))[1]; "
    "train.main(sys.argv[1:])"
)


class Running:
    """The processes of a run, and what the first of them prints."""

    def __init__(self, workdir, data, processes, environment):
        config = [f"--config.{key}={value}" for key, value in {**SETTINGS, "data.path": data}.items()]
        arguments = ["--config=simclr:tiny", f"--workdir={workdir}", *config]
        address = f"127.0.0.1:{emulators.free_port()}"
        self.lines, self._processes = [], []
        for index in range(processes):
            joining = [f"--coordinator={address}", f"--num_processes={processes}", f"--process_id={index}"]
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", SLOWLY, *arguments, *(joining if processes > 1 else [])],
                    cwd=ROOT,
                    env=flags.environment(**environment),
                    stdout=subprocess.PIPE if index == 0 else subprocess.DEVNULL,
                    stderr=subprocess.STDOUT if index == 0 else subprocess.DEVNULL,
                    text=True,
                )
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self._processes[0].stdout:
            self.lines.append(line.rstrip())

    @property
    def text(self):
        return "\n".join(self.lines)

    def reach(self, step):
        """Waits for the line of this step or a later one; False if the run ends before."""
        while self._reader.is_alive():
            if any(int(found) >= step for found in re.findall(r"^step +(\d+)/", self.text, re.MULTILINE)):
                return True
            time.sleep(0.02)
        return False

    def kill(self):
        for process in self._processes:
            process.send_signal(signal.SIGKILL)
        self.wait()

    def wait(self, seconds=400):
        codes = [process.wait(seconds) for process in self._processes]
        self._reader.join()
        return codes


def upload_images(bucket):
    values = np.random.default_rng(0).integers(0, 256, (96, 18, 18, 1), np.uint8)
    for k, image in enumerate(values):
        paths.upload(paths.path(f"{bucket}/images/{'ab'[k % 2]}/{k:03d}.png"), png(image))
    return f"{bucket}/images"


def left_by(workdir):
    """The bytes of the backbone, the lines of metrics.jsonl without times, and the saved steps."""
    workdir = paths.path(workdir)
    lines = [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(workdir / "metrics.jsonl")]
    steps = [name for name in paths.names(workdir / "checkpoints") if name.isdigit()]
    return (workdir / "backbone.safetensors").read_bytes(), lines, steps


def finish(workdir, data, processes, environment):
    running = Running(workdir, data, processes, environment)
    assert not any(running.wait()), running.text
    return running


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_is_killed_five_times_ends_as_an_unbroken_one(bucket, processes, tmp_path):
    data, workdir = upload_images(bucket), f"{bucket}/killed-{processes}"
    finish(tmp_path, data, processes, {})
    rng = random.Random(processes)
    step = 0
    for _ in range(5):
        running = Running(workdir, data, processes, {})
        step += rng.randint(2, STEPS // 6)
        assert running.reach(step), running.text
        time.sleep(rng.uniform(0.0, 0.3))
        running.kill()
    finish(workdir, data, processes, {})
    expected, found = left_by(tmp_path), left_by(workdir)
    assert found[0] == expected[0]
    assert found[1] == expected[1]
    assert [line["step"] for line in found[1]] == list(range(1, STEPS + 1))
    assert found[2] == expected[2]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_store_that_refuses_requests_and_is_away_for_20_seconds(scheme, request, tmp_path):
    bucket = request.getfixturevalue(scheme)
    data, workdir = upload_images(bucket), f"{bucket}/faults"
    finish(tmp_path, data, 2, {})
    address = os.environ["STORAGE_EMULATOR_HOST" if scheme == "gs" else "AWS_ENDPOINT_URL"]
    with faults.before(int(address.rpartition(":")[2]), refuse=10) as proxy:
        running = Running(workdir, data, 2, emulators.environment(scheme, proxy.port))
        assert running.reach(10), running.text
        proxy.away(20.0)
        assert not any(running.wait()), running.text
        assert proxy.refused >= 20
    expected, found = left_by(tmp_path), left_by(workdir)
    assert found[0] == expected[0]
    assert found[1] == expected[1]
    assert found[2] == expected[2]
    assert "the store" in running.text  # it said so


@pytest.mark.slow
def test_a_store_that_stays_away_ends_the_run_with_a_sentence(s3, tmp_path):
    data, workdir = upload_images(s3), f"{s3}/away"
    with faults.before(int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])) as proxy:
        environment = {**emulators.environment("s3", proxy.port), "SSL_JAX_STORE_PATIENCE": "5"}
        running = Running(workdir, data, 1, environment)
        assert running.reach(6), running.text
        proxy.stop()
        (code,) = running.wait()
    assert code == 1
    # Orbax's thread, whose write fails as well, may print its trace afterwards.
    (said,) = [line for line in running.lines if line.startswith("error: ")]
    assert re.search("has not answered for|could not be written to", said)
    finish(tmp_path, data, 1, {})
    finish(workdir, data, 1, {})
    assert left_by(workdir)[:2] == left_by(tmp_path)[:2]
    assert json.loads((paths.path(workdir) / "run.json").read_text())["source"]["name"] == data

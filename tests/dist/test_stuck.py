"""Processes that are stopped, or slow, in the middle of a run: what the others say, and how the run goes on."""

import os
import platform
import re
import signal
import time

import pytest

from ssl_jax import dist
from ssl_jax.workdir.metrics import TIMES, read_metrics
from tests.dist.programs import arguments, finish, small, start

LIMIT = 30.0  # a silent process is one without a heartbeat for 10 s; less is too little on a busy machine
STEPS = 40


def settings(workdir, *flags, **changes):
    options = dict(steps=STEPS, batch_size=8, checkpoint_every=4, **small("simclr")) | changes
    return [*arguments(workdir, **options), *flags]


def wait_for(process, pattern):
    for line in process.stdout:
        if re.match(pattern, line):
            return
    pytest.fail(f"the process ended before {pattern}")


def written(workdir):
    """What a run leaves, without what depends on the time it took."""
    lines = [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(workdir / "metrics.jsonl")]
    return lines, (workdir / "backbone.safetensors").read_bytes(), (workdir / "backbone.json").read_bytes()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "unbroken"
    for code, output in finish(start(settings(workdir), processes=2)):
        assert code == 0, output
    return written(workdir)


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_a_stopped_process_is_named_within_the_limit_and_the_run_goes_on_to_the_same_bytes(tmp_path, unbroken, index):
    workdir, flag = tmp_path / "run", f"--watchdog_seconds={LIMIT}"
    started = start(settings(workdir, flag), processes=2)
    wait_for(started[0], r"step +10/")
    stopped, other = started[index], started[1 - index]
    stopped.send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    assert other.wait(60) == dist.STUCK
    assert time.monotonic() - begun < LIMIT + 2  # 2: to write the stacks, on a busy machine
    output = other.stdout.read()
    last = output.splitlines()[-1]
    assert last.startswith("error: ") and f"Exit code {dist.STUCK}" in last, output
    named = f"process 1 on {platform.node()} has ended or was stopped" if index else "process 0, through which"
    assert named in last
    assert "MainThread" in output and "in run\n" in (workdir / f"stacks-{1 - index}.txt").read_text()
    stopped.kill()
    finish(started)
    for code, output in finish(start(settings(workdir, flag), processes=2)):
        assert code == 0, output
    assert written(workdir) == unbroken


SLOW = """
import sys, time
from ssl_jax.cli import train
from ssl_jax.data import pipeline
made = pipeline.train_batches
class Slow:
    def __init__(self, *args, **options):
        self.batches = made(*args, **options)
        self.skipped = self.batches.skipped
    def __next__(self):
        time.sleep(0.05)
        return next(self.batches)
if "--process_id=1" in sys.argv:
    pipeline.train_batches = Slow
train.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_process_that_sleeps_for_50_ms_a_step_is_named(tmp_path):
    run = settings(tmp_path / "run", steps=60, log_every=20, checkpoint_every=1000)
    (code, output), (other_code, _) = finish(start(run, processes=2, program=("-c", SLOW)))
    assert (code, other_code) == (0, 0), output
    assert f"slowest process 1 on {platform.node()} (busy " in output
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")[1:]
    assert [line["slowest_process"] for line in lines] == [1.0] * 3
    assert all(line["busy_max"] > 2 * line["busy_min"] for line in lines)
    assert all(0 <= line[name] <= 1 for line in lines for name in TIMES - {"images_per_second", "slowest_process"})
    assert os.path.exists(tmp_path / "run" / "backbone.safetensors")

"""Runs of several processes: how they start, agree and end."""

import json
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import NamedTuple

import numpy as np
import pytest
import safetensors.numpy

from ssl_jax import dist
from ssl_jax.dist import processes
from ssl_jax.workdir.metrics import read_metrics
from tests.dist.programs import BATCH, ROOT, STEPS, arguments, finish, free_port, small, start
from tests.flags import environment


class Recorded(NamedTuple):
    """losses: [steps]. rows: indices of the images [steps, batch]. weights: of the backbone, last. printed: of each
    process, by all its runs."""

    losses: np.ndarray
    rows: np.ndarray
    weights: dict[str, np.ndarray]
    printed: list[str]


def record(workdirs, *, processes, devices, split=()):
    """{name: what the run of that method's config left}; `workdirs`: {name: workdir}; `split`: with shard_state."""
    runs = [
        (
            str(workdir.with_name(workdir.name + "-rows")),
            arguments(workdir, name, **small(name), shard_state=name in split),
        )
        for name, workdir in workdirs.items()
    ]
    (file := next(iter(workdirs.values())).with_name("runs.json")).write_text(json.dumps(runs))
    results = finish(start([str(file)], processes, devices, [str(ROOT / "tests" / "record_training.py")]))
    for code, output in results:
        assert code == 0, output
    found = {}
    for (name, workdir), (prefix, _) in zip(workdirs.items(), runs, strict=True):
        rows = [np.load(f"{prefix}{index}.npy") for index in range(processes)]
        steps = min(map(len, rows))  # the first process takes another batch for the pictures of some methods
        losses = np.array([line["loss"] for line in read_metrics(workdir / "metrics.jsonl")])
        indices = np.concatenate([r[:steps] for r in rows], axis=1)
        weights = safetensors.numpy.load_file(workdir / "backbone.safetensors")
        found[name] = Recorded(losses, indices, weights, [output for _, output in results])
    return found


def assert_same(found, expected, steps):
    """Losses but for rounding, and the images of the batches; `steps`: that `found` did, the last ones."""
    losses = expected.losses
    assert losses.shape == (STEPS,) and losses.max() - losses.min() > 1e-2  # 100 times what is allowed for below
    np.testing.assert_allclose(found.losses, losses, rtol=1e-4)
    # What the pictures of some methods take comes after.
    np.testing.assert_array_equal(found.rows[:steps], expected.rows[STEPS - steps : STEPS])
    for name, expected_weight in expected.weights.items():
        np.testing.assert_allclose(found.weights[name], expected_weight, atol=2e-5)


def copy_without(workdir, steps, copied):
    shutil.copytree(workdir, copied)
    for step in steps:
        shutil.rmtree(copied / "checkpoints" / str(step))
    return copied


@pytest.mark.slow
def test_two_processes_of_two_devices_train_as_one_of_one_and_others_go_on_from_them(tmp_path):
    """Of MAE, with pictures and online kNN, each of the four keeps a part of the state."""
    names = ("simclr", "moco_v2", "mae")
    of_two = record({name: tmp_path / f"2x2-{name}" for name in names}, processes=2, devices=2, split=("mae",))
    for number, output in enumerate(of_two["simclr"].printed, start=1):
        banner = f"process {number} of 2: 2 cpu device(s) here, mesh data=4, batch 32 = 4 x 8"
        assert output.count(banner) == len(names)
        assert output.count(f"step {STEPS}/{STEPS}") == (len(names) if number == 1 else 0)
    assert (tmp_path / "2x2-mae" / "samples" / "pictures.npz").exists()
    of_one = record({name: tmp_path / f"1x1-{name}" for name in names}, processes=1, devices=1)
    for name in names:
        assert of_one[name].rows.shape[1] == BATCH
        assert_same(of_two[name], of_one[name], STEPS)

    copies = {
        name: copy_without(tmp_path / f"2x2-{name}", (6, 8), tmp_path / f"1x8-{name}") for name in ("simclr", "mae")
    }
    for name, gone_on in record(copies, processes=1, devices=8).items():
        assert_same(gone_on, of_one[name], 4)


@pytest.mark.slow
def test_sigterm_for_one_process_stops_both_at_one_step_and_they_go_on(tmp_path):
    workdir = tmp_path / "run"
    settings = arguments(workdir, steps=200, checkpoint_every=1000, **small("simclr"))
    started = start(settings, processes=2)
    for line in started[0].stdout:
        if re.match(r"step +3/", line):
            started[1].send_signal(signal.SIGTERM)
            break
    (code, output), (other_code, other_output) = finish(started)
    assert (code, other_code) == (0, 0), output + other_output
    step = int(re.search(r"stopped by SIGTERM; step (\d+) is saved", output).group(1))
    assert 3 < step < 200
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == [str(step)]
    started = start(settings, processes=2)
    for line in started[0].stdout:
        if line.startswith("steps"):
            assert line.startswith(f"steps {step + 1} to 200")
            break
    for process in started:
        process.send_signal(signal.SIGTERM)  # while compiling: noticed after it
    results = finish(started)
    assert [code for code, _ in results] == [0, 0], results
    assert re.search(r"stopped by SIGTERM; step \d+ is saved", results[0][1])


def test_processes_that_run_something_else_are_told_what(tmp_path):
    started = start(lambda index: arguments(tmp_path / "run", **{"optimizer.lr": 0.1 * (index + 1)}), processes=2)
    for code, output in finish(started):
        assert code == 1
        assert "config.optimizer.lr: 0.1 in process 0, 0.2 in process 1" in output
        assert "Traceback" not in output
    assert not (tmp_path / "run").exists()


def test_a_port_in_use_is_a_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(dist.ProcessError, match=rf"cannot open port {port} .*in use.*another --coordinator"):
            dist.start_processes(f"127.0.0.1:{port}", "2", "0")
    with pytest.raises(dist.ProcessError, match="cannot open port 99999"):
        dist.start_processes("127.0.0.1:99999", "2", "0")


@pytest.mark.slow
def test_where_a_process_is_killed_the_other_says_what_to_look_at(tmp_path):
    settings = arguments(tmp_path / "run", steps=100_000, **small("simclr"))
    first, second = started = start(settings, processes=2)
    while not ((tmp_path / "run" / "metrics.jsonl").exists() and read_metrics(tmp_path / "run" / "metrics.jsonl")):
        assert first.poll() is None and second.poll() is None
        time.sleep(0.2)
    second.kill()
    (code, output), _ = finish(started)
    assert code == dist.STUCK
    last = output.splitlines()[-1]
    assert last.startswith(f"error: process 1 on {platform.node()} has ended or was stopped"), output
    assert "own output says why" in last and "same command goes on" in last


def test_a_process_that_waits_in_vain_names_the_likely_causes():
    address = f"127.0.0.1:{free_port()}"
    code = f"from ssl_jax import dist; dist.start_processes({address!r}, '2', '0', wait_seconds=2)"
    begun = time.monotonic()
    waiting = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(1), capture_output=True, text=True, timeout=120
    )
    assert waiting.returncode == dist.NOT_MET
    assert f"after 2 s not all processes have met at {address}" in waiting.stderr
    assert "--num_processes" in waiting.stderr and "firewall" in waiting.stderr
    assert time.monotonic() - begun < 100


@pytest.mark.slow
def test_a_save_that_fails_in_one_process_alone_ends_the_run_at_once_and_both_say_why(tmp_path):
    # No file of the second process may grow beyond 20 kB; the first has room, and would wait 20 minutes for it.
    code = "import resource, sys; from ssl_jax.cli import train; "
    code += "'--process_id=1' in sys.argv and resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, -1)); "
    code += "train.main(sys.argv[1:])"
    settings = arguments(tmp_path / "run", steps=100_000, **small("simclr"))
    first, second = started = start(settings, processes=2, program=("-c", code))
    try:
        assert second.wait(300) == 1
        output = second.stdout.read()
        assert "error: a checkpoint could not be written" in output and "Make room there" in output
        assert first.wait(60) == dist.STUCK
        output = first.stdout.read()
        assert "process 1 on" in output and "has ended (error: a checkpoint could not be written" in output
    finally:
        finish(started)


@pytest.mark.slow
def test_processes_restore_the_same_checkpoint_or_none_whatever_one_of_them_cannot_read(tmp_path):
    workdir = tmp_path / "run"
    record({"simclr": workdir}, processes=1, devices=4)
    kept = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    code = "import sys; from ssl_jax.cli import train; from ssl_jax.training import checkpoint\n"
    code += "def gone(path): raise OSError(116, 'Stale file handle')\n"
    code += "if '--process_id=1' in sys.argv: checkpoint.files.digest = gone\n"
    code += "train.main(sys.argv[1:])"
    again = arguments(workdir, **small("simclr"))
    for exit_code, output in finish(start(again, processes=2, program=("-c", code))):
        assert exit_code == 1
        assert f"checkpoint {STEPS}" in output and "cannot be read now" in output and "Stale file handle" in output
        assert "Traceback" not in output
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == kept
    damaged = next(path for path in (workdir / "checkpoints" / str(STEPS)).rglob("d/*") if path.is_file())
    damaged.write_bytes(damaged.read_bytes()[:-1])
    for exit_code, output in finish(start(again, processes=2)):
        assert exit_code == 0, output
        assert f"going on from checkpoint {STEPS - 2}" in output


@pytest.mark.slow
def test_a_process_may_come_to_the_first_step_much_later():
    address = f"127.0.0.1:{free_port()}"
    code = (
        "import sys, time; from ssl_jax import dist; index = int(sys.argv[1]);"
        f"dist.start_processes({address!r}, '2', sys.argv[1]); time.sleep(40 * index);"
        "print(dist.Agreement(dist.make_mesh(), delay=0)(index == 1, False))"
    )
    command = [sys.executable, "-c", code]
    options = dict(cwd=ROOT, env=environment(2), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for exit_code, output in finish([subprocess.Popen([*command, str(index)], **options) for index in range(2)]):
        assert exit_code == 0 and "(True, False)" in output, output


@pytest.mark.parametrize(
    "given, message",
    [
        (("127.0.0.1", "2", "0"), "HOST:PORT"),
        (("", "2", "0"), "HOST:PORT"),
        (("127.0.0.1:1", "2", "2"), r"--process_id in 0\.\.N-1.*--process_id=2"),
        (("127.0.0.1:1", "2", ""), "--process_id="),
        (("127.0.0.1:1", "two", "0"), "--num_processes=two"),
    ],
)
def test_where_to_meet_is_said_in_full(given, message):
    with pytest.raises(dist.ProcessError, match=message):
        dist.start_processes(*given)


def test_alone_nothing_is_started(monkeypatch):
    monkeypatch.setattr(processes.jax.distributed, "initialize", lambda **_: pytest.fail("started"))
    dist.start_processes()
    dist.start_processes("127.0.0.1:1", "1", "0")
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node[1-2]")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    dist.start_processes()


def test_several_tasks_of_slurm_are_joined(monkeypatch):
    joined = {}
    monkeypatch.setattr(processes.jax.distributed, "initialize", lambda **options: joined.update(options))
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node[1-2]")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    dist.start_processes(wait_seconds=40)
    assert joined == {"num_processes": 4, "initialization_timeout": 100, "heartbeat_timeout_seconds": 300}


@pytest.mark.parametrize(
    "error, alone", [(ValueError("coordinator_address should be defined."), True), (RuntimeError("no host"), False)]
)
def test_a_tpu_machine_is_alone_only_where_it_belongs_to_no_pod(monkeypatch, error, alone):
    def initialize(**options):
        assert options == {"initialization_timeout": 360, "heartbeat_timeout_seconds": 300}
        raise error

    monkeypatch.setattr(processes.jax.distributed, "initialize", initialize)
    monkeypatch.setattr(processes, "_on_tpu", lambda: True)
    if alone:
        dist.start_processes()
    else:
        with pytest.raises(dist.ProcessError, match=r"cannot join the others.*no host"):
            dist.start_processes()


def test_a_process_alone_agrees_with_itself_at_once():
    agree = dist.Agreement(dist.make_mesh(), delay=2)
    assert agree(False, True) == (False, True)


def test_what_one_process_gathers_is_its_own():
    rows = np.arange(6, dtype=np.int32).reshape(3, 2)
    np.testing.assert_array_equal(dist.gather_rows(rows), rows)
    facts = {"a": "ä", "b": None, "c": [1, 2]}
    assert dist.gather_facts(facts) == [facts]
    dist.check_same(facts)

"""What a workdir in a bucket needs in place of renames, locks and appending."""

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import config as configs
from ssl_jax import paths, stores
from ssl_jax.cli import flags
from ssl_jax.training.checkpoint import Checkpoints
from ssl_jax.workdir import config_file, facts, files, lease, lock, mirror
from ssl_jax.workdir.metrics import MetricsWriter, read_metrics


@pytest.fixture
def workdir(bucket, request):
    return paths.path(f"{bucket}/{re.sub('[^a-z0-9]+', '-', request.node.name)}")


@pytest.fixture
def hasty(monkeypatch):
    """Leases of a second."""
    for name, value in {"RENEWED": 0.1, "EXPIRES": 1.0, "SETTLES": 0.1, "LOOKS": 0.05}.items():
        monkeypatch.setattr(lease, name, value)


def make_state(value):
    return {"w": jnp.full((3, 5), value, jnp.float32), "step": jnp.asarray(value, jnp.int32)}


def save(workdir, steps):
    checkpoints = Checkpoints(workdir / "checkpoints", keep=2)
    for step in steps:
        checkpoints.save(step, make_state(step))
    checkpoints.close()


def restored(workdir):
    found = Checkpoints(workdir / "checkpoints", keep=2).restore(make_state(0))
    return None if found is None else int(found["step"])


def test_files_are_replaced_whole(workdir, tmp_path):
    files.write(workdir / "a.txt", "first")
    with contextlib.suppress(RuntimeError), files.replacing(workdir / "a.txt") as file:
        file.write(b"half")
        raise RuntimeError
    assert (workdir / "a.txt").read_text() == "first"
    files.write_arrays(workdir / "b.npz", {"x": np.arange(3)})
    with np.load(paths.opened(workdir / "b.npz")) as arrays:
        assert arrays["x"].tolist() == [0, 1, 2]
    (tmp_path / "a.txt").write_text("first")
    assert files.digest(workdir / "a.txt") == files.digest(tmp_path / "a.txt")
    with files.new_directory(workdir / "new") as folder:
        (folder / "c").write_text("c")
    assert paths.files_below(workdir) == ["a.txt", "b.npz", "new/c"]


def test_the_newest_checkpoints_are_kept_and_the_newest_is_restored(workdir):
    assert not facts.has_checkpoints(workdir)
    assert restored(workdir) is None
    save(workdir, [1, 2, 3])
    assert facts.complete_steps(workdir / "checkpoints") == [2, 3]
    assert restored(workdir) == 3
    digests = json.loads((workdir / "checkpoints/3/sha256.json").read_text())
    assert any(name.startswith("state/") for name in digests)


def test_a_damaged_checkpoint_is_set_aside_and_one_without_its_last_file_is_none(workdir, caplog):
    save(workdir, [1, 2])
    damaged = next(name for name in paths.files_below(workdir / "checkpoints/2/state") if name.startswith("d/"))
    content = (workdir / "checkpoints/2/state" / damaged).read_bytes()
    paths.upload(workdir / "checkpoints/2/state" / damaged, bytes([content[0] ^ 1]) + content[1:])
    paths.upload(workdir / "checkpoints/3/state/d/half", b"killed while it was saved")
    assert restored(workdir) == 1
    assert f"checkpoint 2 cannot be read (state/{damaged} is not as it was written)" in caplog.text
    assert "going on from checkpoint 1 instead" in caplog.text
    assert f"state/{damaged}" in paths.files_below(workdir / "checkpoints.damaged/2")
    assert paths.names(workdir / "checkpoints") == ["1"]  # what was half saved is removed
    save(workdir, [2])
    assert restored(workdir) == 2


def test_a_checkpoint_is_complete_only_after_what_must_come_before_it(workdir):
    checkpoints = Checkpoints(workdir / "checkpoints")
    seen = []
    checkpoints.before_commit = lambda: seen.append(facts.complete_steps(workdir / "checkpoints"))
    checkpoints.save(1, make_state(1))
    checkpoints.close()
    assert seen == [[]]


def test_metrics_are_uploaded_before_a_checkpoint_and_in_the_background(workdir, monkeypatch):
    monkeypatch.setattr(mirror, "LEAST_WAIT", 0.2)
    writer = MetricsWriter(workdir, 0)
    writer.write(1, {"loss": 2.0})
    writer.sync()
    assert [line["step"] for line in read_metrics(workdir / "metrics.jsonl")] == [1]
    writer.write(2, {"loss": 1.0})
    wait_until(lambda: len(read_metrics(workdir / "metrics.jsonl")) == 2)
    writer.write(3, {"loss": 1.0})  # a kill: it is not uploaded
    assert len(read_metrics(workdir / "metrics.jsonl")) == 2
    writer = MetricsWriter(workdir, 1)  # goes on from the checkpoint of step 1
    assert [line["step"] for line in read_metrics(workdir / "metrics.jsonl")] == [1]
    writer.write(2, {"loss": float("nan")})
    writer.close()
    assert read_metrics(workdir / "metrics.jsonl") == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}]
    assert len(paths.names(workdir / "tensorboard")) in (1, 2)  # one for each start, named by its second


def test_what_was_logged_before_an_error_is_uploaded(workdir):
    with contextlib.suppress(ArithmeticError), MetricsWriter(workdir, 0) as writer:
        writer.write(1, {"loss": float("inf")})
        raise ArithmeticError
    assert [line["step"] for line in read_metrics(workdir / "metrics.jsonl")] == [1]


def test_a_config_is_kept_in_a_bucket(workdir):
    config = configs.base_config()
    config_file.claim(workdir, config)
    config.seed = 1
    with pytest.raises(configs.ConfigError, match="another config"):
        config_file.claim(workdir, config)
    assert config_file.read_config(workdir).seed == 0


def test_a_live_lease_is_respected_and_a_released_one_is_free(workdir, hasty):
    with lock.alone(workdir) as check:
        check(now=True)
        with (
            pytest.raises(
                configs.ConfigError,
                match=rf"another process is training in {workdir}: process {os.getpid()} on .*; wait until it has "
                r"ended, or use another --workdir\. Its lease ends 1 s after it has died",
            ),
            lock.alone(workdir),
        ):
            raise AssertionError("it must not come here")
    assert paths.names(workdir) == []
    with lock.alone(workdir):
        pass


def test_a_lease_of_another_machine_is_taken_once_it_does_not_change(workdir, hasty, caplog):
    paths.upload(workdir / ".lock", json.dumps({"id": "x", "process": 1, "host": "far"}).encode())
    begun = time.monotonic()
    with lock.alone(workdir):
        assert time.monotonic() - begun > 1.0
    assert "is held by process 1 on far; waiting up to 1 s for a sign of life" in caplog.text


def test_a_lease_of_a_dead_process_of_this_machine_is_taken_at_once(workdir, monkeypatch):
    monkeypatch.setattr(lease, "SETTLES", 0.1)
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    dead = {"id": "x", "process": process.pid, "host": "here", "machine": lease._machine()}
    paths.upload(workdir / ".lock", json.dumps(dead).encode())
    begun = time.monotonic()
    with lock.alone(workdir):
        assert time.monotonic() - begun < 10


def test_of_two_that_take_a_lease_at_once_one_gets_it(workdir, hasty, monkeypatch):
    monkeypatch.setattr(paths, "create", lambda path, content: paths.upload(path, content) or True)  # no conditions
    leases = [lease.Lease(workdir / ".lock") for _ in range(3)]
    holders = [""] * 3
    threads = [threading.Thread(target=lambda k=k: holders.__setitem__(k, leases[k].take())) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert holders.count("") == 1
    leases[holders.index("")].release()


def test_a_holder_whose_lease_was_taken_stops_writing(workdir, hasty):
    with lock.alone(workdir) as check:
        writer = MetricsWriter(workdir, 0, check)
        writer.write(1, {"loss": 1.0})
        paths.upload(workdir / ".lock", json.dumps({"id": "y", "process": 7, "host": "far"}).encode())
        for attempt in (writer.sync, lambda: writer.write(2, {"loss": 1.0})):
            with pytest.raises(configs.ConfigError, match="was taken over by process 7 on far"):
                attempt()
    assert json.loads((workdir / ".lock").read_text())["id"] == "y"  # it is not removed


def test_a_clock_that_jumps_loses_no_lease(workdir, hasty, monkeypatch):
    with lock.alone(workdir) as check:
        monkeypatch.setattr(time, "time", lambda: 4e9)
        time.sleep(0.3)
        check(now=True)


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("foo://bucket/run", "'foo://bucket/run' begins with foo://, which is not known; give a local path, or one"),
        ("gs:///", "names no bucket; give gs://BUCKET/DIRECTORY"),
    ],
)
def test_addresses_that_are_none(text, sentence):
    with pytest.raises(configs.ConfigError, match=f"--workdir: .*{sentence}"):
        flags.path("workdir", text)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr(stores.importlib.util, "find_spec", lambda name: None)
    for scheme, package, extra in (("gs", "gcsfs", "gcs"), ("s3", "s3fs", "s3")):
        with pytest.raises(ValueError, match=rf"needs {package}: pip install 'ssl_jax\[{extra}\]'"):
            paths.path(f"{scheme}://bucket/run")


def test_a_bucket_that_is_not_there_is_said_before_any_work(bucket):
    missing = bucket.replace("bucket", "elsewhere")
    with pytest.raises(configs.ConfigError, match=f"there is no bucket elsewhere; make it first, .*{missing}"):
        flags.check_directory("workdir", flags.path("workdir", f"{missing}/run"))
    flags.check_directory("workdir", flags.path("workdir", f"{bucket}/run"))
    assert paths.names(paths.path(f"{bucket}/run")) == []  # nothing is left of the check


def test_the_train_state_is_the_same_on_a_disk_and_in_a_bucket(workdir, tmp_path):
    state = {"w": jax.random.normal(jax.random.key(0), (7, 3))}
    for place in (workdir, tmp_path):
        checkpoints = Checkpoints(place / "checkpoints")
        checkpoints.save(1, state)
        checkpoints.close()
        found = Checkpoints(place / "checkpoints").restore(jax.tree.map(jnp.zeros_like, state))
        np.testing.assert_array_equal(found["w"], state["w"])

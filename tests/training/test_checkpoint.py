import asyncio
import json
import resource
import shutil
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore

from ssl_jax.training import checkpoint
from ssl_jax.training.checkpoint import CheckpointError, Checkpoints, without_late_writes
from ssl_jax.workdir.metrics import MetricsWriter, read_metrics


def make_state(value):
    return {"w": jnp.full((3, 2), value), "step": jnp.int32(value), "rng": jax.random.key(value), "none": {}}


def assert_state(state, value):
    np.testing.assert_array_equal(state["w"], np.full((3, 2), value))
    assert int(state["step"]) == value
    np.testing.assert_array_equal(jax.random.key_data(state["rng"]), jax.random.key_data(jax.random.key(value)))


@pytest.fixture
def saved(tmp_path):
    """Checkpoints of steps 1 to 5, step 2 the best; the directory."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in range(1, 6):
        checkpoints.save(step, make_state(step), knn_top1=90.0 if step == 2 else 50.0)
    checkpoints.close()
    return tmp_path / "checkpoints"


def steps_in(directory):
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


def test_newest_three_and_the_best_are_kept_and_the_newest_is_restored(saved):
    assert steps_in(saved) == [2, 3, 4, 5]
    assert_state(Checkpoints(saved).restore(make_state(0)), 5)


def test_each_process_digests_its_own_files_and_the_first_one_the_rest(tmp_path, monkeypatch):
    read, digests = [], checkpoint.digests
    monkeypatch.setattr(checkpoint, "digests", lambda directory, names: read.append(names) or digests(directory, names))
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, make_state(1))
    checkpoints.close()
    written = json.loads((tmp_path / "checkpoints" / "1" / "sha256.json").read_text())
    assert sum(map(len, read)) == len(written)  # each file is read once
    own = {name for name in written if name.startswith("state/ocdbt.process_0/")}
    assert len(read[0]) == len(own) and own.isdisjoint(read[1]) and set(read[1]) < set(written)
    assert not list((tmp_path / "checkpoints" / "1").glob("sha256.process*"))


@pytest.mark.filterwarnings("error::DeprecationWarning")
def test_no_call_of_orbax_is_deprecated(tmp_path):
    """Orbax reports most of them to JAX's monitoring instead of by a warning."""
    events = []
    jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, make_state(1), knn_top1=50.0)
    checkpoints.close()
    assert_state(Checkpoints(tmp_path / "checkpoints").restore(make_state(0)), 1)
    assert any("orbax" in event for event in events)
    assert not [event for event in events if "deprecat" in event]


def test_nothing_saved_is_none(tmp_path):
    assert Checkpoints(tmp_path / "checkpoints").restore(make_state(0)) is None


def truncate(step):
    largest = max((path for path in step.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:20])


@pytest.mark.parametrize("damage", [truncate, lambda step: shutil.rmtree(step / "state")], ids=["truncated", "emptied"])
def test_a_damaged_newest_checkpoint_is_set_aside_with_a_warning(saved, damage, caplog):
    damage(saved / "5")
    checkpoints = Checkpoints(saved)
    assert_state(checkpoints.restore(make_state(0)), 4)
    assert "checkpoint 5 cannot be read" in caplog.text
    assert (saved.with_name("checkpoints.damaged") / "5").is_dir()
    checkpoints.save(5, make_state(5))  # the run comes by again
    checkpoints.close()
    assert_state(Checkpoints(saved).restore(make_state(0)), 5)


def test_a_half_written_checkpoint_is_ignored(saved):
    shutil.copytree(saved / "5", saved / "6.orbax-checkpoint-tmp")
    assert_state(Checkpoints(saved).restore(make_state(0)), 5)


def test_when_none_can_be_read_nothing_is_lost_and_the_run_does_not_begin_anew(saved):
    for step in steps_in(saved):
        truncate(saved / str(step))
    with pytest.raises(CheckpointError, match=r"none of the checkpoints \[5, 4, 3, 2\]"):
        Checkpoints(saved).restore(make_state(0))
    assert steps_in(saved) == [2, 3, 4, 5]


def test_a_disk_that_does_not_answer_is_no_damage(saved, monkeypatch):
    def stale(path):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(checkpoint.files, "digest", stale)
    with pytest.raises(CheckpointError, match=r"checkpoint 5 in .* cannot be read now \(.*Stale file handle"):
        Checkpoints(saved).restore(make_state(0))
    assert steps_in(saved) == [2, 3, 4, 5] and not saved.with_name("checkpoints.damaged").exists()


def test_a_whole_checkpoint_of_another_state_is_no_damage(saved):
    with pytest.raises(
        CheckpointError,
        match=r"checkpoint 5 in .* cannot be restored .* none of its files .* code or a package changed",
    ):
        Checkpoints(saved).restore(make_state(0) | {"more": jnp.ones(3)})
    assert steps_in(saved) == [2, 3, 4, 5] and not saved.with_name("checkpoints.damaged").exists()


def test_a_save_that_fails_in_the_background_is_told_at_the_next_step(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, make_state(1))
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.check()  # nothing is being saved

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    # What makes a complete checkpoint appear under its name, in the background.
    monkeypatch.setattr(ocp.CheckpointManager, "_finalize_checkpoint", full)
    checkpoints.save(2, make_state(2))
    deadline = time.monotonic() + 60
    with pytest.raises(CheckpointError, match=r"No space left.*same command then goes on"):  # noqa: PT012
        while time.monotonic() < deadline:
            checkpoints.check()
            time.sleep(0.01)
    assert_state(Checkpoints(tmp_path / "checkpoints").restore(make_state(0)), 2)


def test_metrics_have_one_line_a_step_over_a_resume(tmp_path):
    writer = MetricsWriter(tmp_path, 0)
    for step in (10, 20, 30):
        writer.write(step, {"loss": float(step)})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')  # killed while writing
    writer = MetricsWriter(tmp_path, 20)
    writer.write(30, {"loss": float("nan")})
    writer.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 10, "loss": 10.0}, {"step": 20, "loss": 20.0}, {"step": 30, "loss": None}]
    assert read_metrics(tmp_path / "metrics.jsonl") == lines
    assert list((tmp_path / "tensorboard").iterdir())


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_a_flipped_bit_in_any_file_is_noticed(saved):
    files = [path for path in (saved / "5").rglob("*") if path.is_file() and path.stat().st_size]
    digested = [path for path in files if path.name not in ("_CHECKPOINT_METADATA", "commit_success.txt")]
    assert len(digested) > 5
    for number, path in enumerate(digested):
        copy = saved.with_name(f"copy_{number}") / "checkpoints"
        shutil.copytree(saved, copy)
        flip(copy / path.relative_to(saved), path.stat().st_size // 2)
        assert_state(Checkpoints(copy).restore(make_state(0)), 4)
        assert (copy.with_name("checkpoints.damaged") / "5").is_dir()


def test_what_was_set_aside_before_stays(saved):
    for _ in range(2):
        truncate(saved / "5")
        checkpoints = Checkpoints(saved)
        assert_state(checkpoints.restore(make_state(0)), 4)
        checkpoints.save(5, make_state(5))
        checkpoints.close()
    assert sorted(path.name for path in saved.with_name("checkpoints.damaged").iterdir()) == ["5", "5.2"]


@pytest.fixture
def small_files():
    """No file may grow beyond 100 kB, as on a disk that is full; what is there stays."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("how", ["check", "close", "save"])
def test_what_could_not_be_written_in_the_background_is_said_and_nothing_is_lost(saved, small_files, how):
    def go_on():
        checkpoints.save(6, make_state(6) | {"w": jnp.asarray(noise)})
        if how == "close":
            checkpoints.close()
        if how == "save":
            checkpoints.save(7, make_state(7))
        for _ in range(300):
            time.sleep(0.1)
            checkpoints.check()

    checkpoints = Checkpoints(saved)
    noise = np.random.default_rng(0).normal(size=(500, 500)).astype(np.float32)  # a megabyte that does not compress
    message = r"could not be written to .*; the earlier checkpoints \[2, 3, 4, 5\] are whole\. Make room there"
    with pytest.raises(CheckpointError, match=message):
        go_on()
    assert_state(Checkpoints(saved).restore(make_state(0)), 5)


def test_writes_that_end_after_their_save_failed_are_silent_and_other_errors_are_not(monkeypatch):
    class Broken:
        def __del__(self):
            raise RuntimeError("something else")

    told = []
    monkeypatch.setattr(sys, "unraisablehook", without_late_writes(lambda found: told.append(str(found.exc_value))))
    late, answer = tensorstore.Promise.new()

    async def wait():
        await answer

    loop = asyncio.new_event_loop()
    task = loop.create_task(wait())
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    late.set_exception(OSError("no space left"))
    assert not task.done()
    Broken()
    assert told == ["something else"]


def test_checkpoints_of_versions_without_digests_are_restored(saved):
    (saved / "5" / "sha256.json").unlink()
    assert_state(Checkpoints(saved).restore(make_state(0)), 5)

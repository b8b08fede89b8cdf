import errno
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ssl_jax import config as configs
from ssl_jax.data import sources
from ssl_jax.training import progress, termination, timing
from ssl_jax.workdir import config_file, facts, lock
from ssl_jax.workdir.metrics import MetricsWriter, read_metrics


def test_a_workdir_is_kept_for_its_config(tmp_path):
    config = ConfigDict(dict(seed=0, optimizer=dict(lr=0.1), data=dict(mean=(0.5,))))
    config_file.claim(tmp_path / "a" / "run", config)
    config_file.claim(tmp_path / "a" / "run", config)
    config.optimizer.lr = 0.2
    with pytest.raises(configs.ConfigError, match=r"optimizer\.lr: 0\.1 -> 0\.2\nuse another --workdir"):
        config_file.claim(tmp_path / "a" / "run", config)
    assert config_file.read_config(tmp_path / "a" / "run").optimizer.lr == 0.1


def test_keys_that_came_later_have_their_defaults_in_older_runs(tmp_path):
    config = configs.base_config()
    older = configs.plain(config)
    del older["log_every"]
    (tmp_path / "config.json").write_text(json.dumps(older))
    assert config_file.read_config(tmp_path).log_every == 50
    config_file.claim(tmp_path, config)
    (tmp_path / "config.json").write_text(json.dumps(older))
    config.log_every = 10
    with pytest.raises(configs.ConfigError, match=r"log_every: 50 -> 10"):
        config_file.claim(tmp_path, config)


def test_a_run_may_go_on_with_other_keys_of_how_it_is_done(tmp_path):
    config = configs.base_config()
    config_file.claim(tmp_path, config)
    before = configs.digest(config)
    config.update(checkpoint_minutes=1.0, shard_state=True)
    config_file.claim(tmp_path, config)
    assert config_file.read_config(tmp_path).shard_state
    assert configs.digest(config) == before
    config.seed = 1
    assert configs.digest(config) != before
    # A study's config holds those of its pre-trainings.
    assert configs.differences(ConfigDict({"a": {"b": configs.base_config()}}), ConfigDict({"a": {"b": config}})) == [
        "a.b.seed: 0 -> 1"
    ]


def test_one_start_at_a_time_trains_in_a_workdir(tmp_path):
    second = lambda: lock.alone(tmp_path)  # noqa: E731
    with lock.alone(tmp_path):
        with (
            pytest.raises(configs.ConfigError, match=rf"another process is training in .*process {os.getpid()} on "),
            second(),
        ):
            raise AssertionError("it must not come here")
        with pytest.raises(configs.ConfigError, match=rf"process {os.getpid()} on "), second():
            raise AssertionError("it must not come here")
    with lock.alone(tmp_path):
        pass


def test_where_the_file_system_has_no_locks_a_run_is_warned_and_goes_on(tmp_path, monkeypatch, caplog):
    def no_locks(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", no_locks)
    with lock.alone(tmp_path):
        assert "cannot be locked (No locks available)" in caplog.text


def test_on_windows_a_run_is_warned_and_goes_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(lock, "fcntl", None)
    with lock.alone(tmp_path):
        assert "cannot be locked (Python has no fcntl on Windows): start no second run in it" in caplog.text


def test_a_timer_passes_after_its_time_and_again_after_a_restart(monkeypatch):
    now = 100.0
    monkeypatch.setattr(termination.time, "monotonic", lambda: now)
    timer, never = termination.Timer(60.0), termination.Timer(0.0)
    assert not timer.passed()
    now = 160.0
    assert timer.passed() and not never.passed()
    timer.restart()
    assert not timer.passed()


def test_reading_the_config_of_no_run_is_a_sentence(tmp_path):
    with pytest.raises(configs.ConfigError, match="holds no run"):
        config_file.read_config(tmp_path)


@pytest.mark.parametrize("content", [b"", b'{"seed": 0', b"\xff\xfe", b"[" * 100_000, b"[1, 2]", b"null"])
def test_a_damaged_config_is_a_sentence_and_stays(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    for read in (config_file.read_config, lambda workdir: config_file.claim(workdir, ConfigDict(dict(seed=0)))):
        with pytest.raises(configs.ConfigError, match=r"config\.json is damaged .*put back a copy"):
            read(tmp_path)
    assert (tmp_path / "config.json").read_bytes() == content


def test_run_json_says_what_ran(tmp_path):
    facts.describe(tmp_path, seed=3, skipped={"a.png": "cut short"})
    described = json.loads((tmp_path / "run.json").read_text())
    assert described["seed"] == 3 and described["skipped"] == {"a.png": "cut short"}
    assert described["versions"]["jax"] == jax.__version__


def test_the_commit_is_told_in_a_clone_and_in_an_archive_of_it(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))

    def git(*command):
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
        command = ["git", "-C", tmp_path / "clone", *identity, *command]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def told(directory):
        monkeypatch.setattr(facts, "__file__", str(tmp_path / directory / "ssl_jax" / "workdir" / "facts.py"))
        return facts.commit()

    for name in (".gitattributes", "ssl_jax/commit.txt"):
        (tmp_path / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(__file__).parents[2] / name, tmp_path / "clone" / name)
    shutil.copytree(tmp_path / "clone", tmp_path / "copy")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    git("archive", "-o", tmp_path / "archive.tar", "HEAD")
    shutil.unpack_archive(tmp_path / "archive.tar", tmp_path / "unpacked")
    assert told("unpacked") == told("clone") == git("rev-parse", "HEAD")[:12]
    assert told("copy") is None


def test_a_run_goes_on_with_the_images_that_it_began_with_alone(tmp_path):
    images = dict(num_images=1234, images_digest="abc")
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    facts.check_images(tmp_path, **images)  # run.json is gone
    facts.describe(tmp_path, skipped={"a.b": "cut short"}, **images)
    facts.check_images(tmp_path, **images)
    for changed, message in [
        (dict(num_images=1230), r"1,230 images, 1,234 when the run began\nrestore the data set .*another --workdir"),
        (dict(images_digest="abd"), r"1,234 images as when the run began, but not the same ones"),
    ]:
        with pytest.raises(configs.ConfigError, match=message):
            facts.check_images(tmp_path, **(images | changed))
    facts.describe(tmp_path, skipped={}, num_images=1234)  # of before there were digests
    facts.check_images(tmp_path, **images)
    (tmp_path / "checkpoints" / "5").rmdir()  # none yet: nothing to go on with
    facts.check_images(tmp_path, num_images=1230, images_digest="abc")


ARRAY = sources.ArraySource(np.zeros((6, 4, 4), np.uint8), name="mine")


def test_a_run_on_given_images_goes_on_with_these_alone(tmp_path):
    found = facts.of_source(ARRAY, given=True)
    assert found == {"name": "mine", "kind": "ArraySource", "digest": ARRAY.digest(), "given": True}
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    facts.describe(tmp_path, skipped={}, num_images=6, source=found)
    assert facts.trained_on(tmp_path) == found
    facts.check_images(tmp_path, num_images=6, images_digest=ARRAY.digest())
    with pytest.raises(
        configs.ConfigError, match=r"a program gave, ArraySource 'mine', .* not the same .*\n.*pretrain\(config, images"
    ):
        facts.check_images(tmp_path, num_images=6, images_digest="another")


def test_what_is_measured_on_is_what_was_trained_on(tmp_path):
    other = sources.ArraySource(np.zeros((6, 4, 4), np.uint8), name="other")
    facts.check_measured(tmp_path, [other], "other")  # no run.json
    facts.describe(tmp_path, skipped={}, num_images=6, images_digest="abc")  # of before it told the source
    facts.check_measured(tmp_path, [other], "other")
    for given, message in [
        (True, r"a program gave, ArraySource 'mine', .*: --data DATA, or evaluate\(workdir, train, test\)"),
        (False, r"images of mine have changed .* measure on what is there now: --data other"),
    ]:
        facts.describe(tmp_path, skipped={}, num_images=6, source=facts.of_source(ARRAY, given=given))
        facts.check_measured(tmp_path, [other, ARRAY], "other")
        with pytest.raises(configs.ConfigError, match=message):
            facts.check_measured(tmp_path, [other], "other")


@pytest.mark.parametrize("content", [b"", b'{"seed": 0', b"\xff\xfe", b"[" * 100_000, b"[1, 2]", b"null"])
def test_a_damaged_run_json_is_a_sentence(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(configs.ConfigError, match=r"run\.json is damaged .*put back a copy"):
        facts.check_images(tmp_path, num_images=1, images_digest="")


def test_sigterm_is_noted_and_only_within_the_context():
    previous = signal.getsignal(signal.SIGTERM)
    with termination.Termination() as asked:
        assert not asked.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.requested
    assert signal.getsignal(signal.SIGTERM) is previous


def make_progress(workdir, learning_rate=lambda step: 0.1 * step, **options):
    settings = dict(chance_level=6.0, batch_size=4, log_every=2, start=0, steps=10, stop_after_skipped=3)
    return progress.Progress(MetricsWriter(workdir, 0), learning_rate, **(settings | options))


def metrics_of(step, skipped_in_a_row=0):
    values = dict(loss=float(step), skipped_steps=skipped_in_a_row, skipped_in_a_row=skipped_in_a_row)
    return {name: jnp.float32(value) for name, value in values.items()}


def test_progress_writes_one_line_for_each_logged_step(tmp_path, capsys):
    told = make_progress(tmp_path)
    for step in range(1, 7):
        told.step(step, metrics_of(step))
        if step == 4:
            told.add(knn_top1=71.5)
    told.flush()
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 4, 6]
    assert [line["loss"] for line in lines] == [1.0, 2.0, 4.0, 6.0]
    assert [line["lr"] for line in lines] == pytest.approx([0.0, 0.1, 0.3, 0.5])
    assert [line.get("knn_top1") for line in lines] == [None, None, 71.5, None]
    assert "images_per_second" in lines[-1] and 0 <= lines[-1]["data_wait"] <= 1
    printed = capsys.readouterr().out
    assert "step  4/10  loss 4.0000 (chance 6.000)  kNN 71.5%" in printed and "left" in printed


def test_a_pause_takes_nothing_from_the_time_of_the_steps_before_it(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock[0])

    class Computing:
        def block_until_ready(self):
            clock[0] += 10.0

    told = make_progress(tmp_path, log_every=1)
    told.step(1, metrics_of(1))
    told.step(2, metrics_of(2))
    with told.paused(Computing(), "evaluation"):
        clock[0] += 100.0
    told.step(3, metrics_of(3))
    clock[0] += 5.0
    told.flush()
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line.get("images_per_second") for line in lines] == [None, 4 / 10.0, 4 / 5.0]


def test_the_speed_of_every_step_is_its_own(tmp_path, monkeypatch):
    """A device works in order and takes 10 s for each step. So what is asked of it after a step waits for that step."""
    clock, busy_until = [0.0], [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock[0])

    class OnDevice:
        def __init__(self, value):
            self.value, self.ready = value, busy_until[0]

        def __float__(self):
            clock[0] = max(clock[0], self.ready)
            return float(self.value)

        def block_until_ready(self):
            float(self)

    monkeypatch.setattr(progress.jax, "device_get", lambda tree: tree)
    told = make_progress(tmp_path, learning_rate=lambda step: OnDevice(0.1 * step), log_every=1, steps=4)
    for step in range(1, 5):
        busy_until[0] = max(busy_until[0], clock[0]) + 10.0
        told.step(step, {name: OnDevice(value) for name, value in metrics_of(step).items()})
    told.flush()
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line.get("images_per_second") for line in lines] == [None, 4 / 10.0, 4 / 10.0, 4 / 10.0]


@pytest.mark.parametrize("losses, alarms", [([3.77, 4.02, 6.0, 4.0, 6.0], 0), ([6.0, 6.001, 6.0, 6.0, 6.0], 1)])
def test_progress_warns_once_of_a_loss_that_stays_at_chance(tmp_path, caplog, losses, alarms):
    told = make_progress(tmp_path, log_every=1)
    for step, loss in enumerate(losses, 2):
        told.step(step, metrics_of(step) | {"loss": jnp.float32(loss)})
    told.flush()
    assert caplog.text.count("nothing is learnt") == alarms


def test_progress_stops_after_skipped_updates_in_a_row(tmp_path):
    told = make_progress(tmp_path)
    told.step(2, metrics_of(2, skipped_in_a_row=2))
    told.step(3, metrics_of(3, skipped_in_a_row=3))  # writes step 2; step 3 is not logged
    told.step(4, metrics_of(4, skipped_in_a_row=4))
    with pytest.raises(progress.Diverged, match=r"last 4 steps, up to step 4.*config\.optimizer\.lr"):
        told.flush()
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [2, 4]


def test_waiting_for_data_is_warned_of_once_with_the_knob(tmp_path, caplog, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(progress.time, "perf_counter", lambda: float(next(clock)))
    activity = timing.Activity()
    told = make_progress(tmp_path, activity=activity)
    for step in range(1, 8):
        with activity.doing(timing.INPUT):
            pass
        with activity.stepping(step):
            pass
        told.step(step, metrics_of(step))
    assert caplog.text.count("config.data.threads") == 1

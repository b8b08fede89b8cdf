"""The programs, end to end, as a user starts them."""

import json
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from ssl_jax import config as configs
from ssl_jax import dist, load_backbone
from ssl_jax.cli import train
from ssl_jax.data import sources
from ssl_jax.evaluation.online import make_online_knn
from ssl_jax.training import build, reading
from ssl_jax.workdir.metrics import TIMES, read_metrics
from tests.flags import environment

ROOT = Path(__file__).parents[2]
CONFIG = "simclr"


def make_folder(path, count=64, labeled=False):
    """Images of mixed sizes, types and depths with something to tell them apart by."""
    rng = np.random.default_rng(0)
    for i in range(count):
        height, width = rng.integers(20, 60, 2)
        blocks = rng.integers(0, 256, (4, 4, 3), np.uint8)
        image = cv2.resize(blocks, (int(width), int(height)), interpolation=cv2.INTER_NEAREST)
        if i % 4 == 1:
            image = image[:, :, 0]
        elif i % 4 == 2:
            image = np.dstack([image, np.full(image.shape[:2], 200, np.uint8)])
        directory = path / f"class_{i % 2}" if labeled else path
        directory.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(directory / f"{i:03d}.{'jpg' if i % 4 == 3 else 'png'}"), image)
    return path


def arguments(workdir, folder, *overrides):
    return [
        f"--config={CONFIG}:folder",
        f"--workdir={workdir}",
        f"--config.data.path={folder}",
        "--config.data.image_size=(16,16)",
        "--config.augment.view.size=(16,16)",
        "--config.augment.view.jitter=0.0",  # whose operations would be most of the program
        "--config.augment.view.blur=0.0",
        "--config.model.width=0.25",
        "--config.model.stages=(1,)",
        "--config.batch_size=16",
        "--config.steps=20",
        "--config.log_every=5",
        "--config.evaluate_every=10",
        "--config.checkpoint_every=5",
        *overrides,
    ]


def start(*args):
    return subprocess.Popen(
        [sys.executable, "-m", "ssl_jax", "train", *args],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_whole(*args):
    process = start(*args)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With two broken files beside the 64 images."""
    path = make_folder(tmp_path_factory.mktemp("images"))
    (path / "zz_text.png").write_text("not an image")
    whole = (path / "000.png").read_bytes()
    (path / "aa_cut.png").write_bytes(whole[: len(whole) // 3])
    return path


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, folder):
    """The workdir of a run that nothing happened to, and what it printed."""
    workdir = tmp_path_factory.mktemp("runs") / "unbroken"
    code, output = run_whole(*arguments(workdir, folder))
    assert code == 0, output
    return workdir, output


def test_a_run_leaves_what_the_readme_says(unbroken):
    workdir, output = unbroken
    lines = read_metrics(workdir / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 5, 10, 15, 20]
    assert lines[0]["chance_level"] == pytest.approx(np.log(31))
    assert all(np.isfinite(line["loss"]) and line["skipped_steps"] == 0 for line in lines)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert {"config.json", "run.json", "backbone.safetensors", "backbone.json"} <= {p.name for p in workdir.iterdir()}
    assert "images/s" in output and "left" in output and "chance 3.434" in output
    views = np.load(workdir / "samples" / "views.npz")
    assert views["original"].shape == (8, 16, 16, 3) and views["views"].shape == (8, 2, 16, 16, 3)
    backbone = load_backbone(workdir)
    assert backbone.features(views["original"]).shape == (8, backbone.dim)


def test_broken_files_are_named_and_do_not_stop_a_run(unbroken):
    workdir, output = unbroken
    assert all(f"skipped {name}" in output for name in ("zz_text.png", "aa_cut.png"))
    skipped = json.loads((workdir / "run.json").read_text())["skipped"]
    assert {Path(name).name for name in skipped} == {"zz_text.png", "aa_cut.png"}


@pytest.mark.slow
def test_a_method_that_draws_leaves_pictures(tmp_path, folder):
    options = ["data.channels=3", "data.mean=(0.5,0.5,0.5)", "data.std=(0.25,0.25,0.25)", "method.decoder_width=4"]
    settings = arguments(tmp_path / "run", folder, "--config.data.name=folder", *(f"--config.{o}" for o in options))
    train.main(["--config=denoising:tiny", *settings[1:], "--config.steps=2"])
    with np.load(tmp_path / "run" / "samples" / "pictures.npz") as pictures:
        assert list(pictures) == ["image", "corrupted", "reconstruction"]
        shapes = {title: (images.shape, images.dtype) for title, images in pictures.items()}
        corrupted = pictures["corrupted"]
    assert set(shapes.values()) == {((8, 16, 16, 3), np.dtype(np.uint8))}
    # Half of the pixels are the mean of the data: 0.5 of 255, rounded to even.
    assert 0.4 < np.mean(np.all(corrupted == 128, axis=-1)) < 0.6


def test_a_second_start_of_a_finished_run_changes_nothing(unbroken, folder):
    workdir, _ = unbroken
    before = {p: p.read_bytes() for p in (workdir / "backbone.safetensors", workdir / "metrics.jsonl")}
    code, output = run_whole(*arguments(workdir, folder))
    assert code == 0 and "finished" in output
    assert {p: p.read_bytes() for p in before} == before


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, folder):
    """The workdir of a run that got SIGTERM at its first step, its exit code, and what it printed after that."""
    workdir = tmp_path_factory.mktemp("runs") / "stopped"
    process = start(*arguments(workdir, folder))
    for line in process.stdout:
        if line.startswith("step") and "1/20" in line:
            process.send_signal(signal.SIGTERM)
            break
    output, _ = process.communicate(timeout=300)
    return workdir, process.returncode, output


def test_sigterm_saves_and_exits(stopped):
    workdir, code, output = stopped
    assert code == 0
    assert "stopped by SIGTERM" in output or "finished" in output
    assert "Traceback" not in output
    assert list((workdir / "checkpoints").iterdir())


def test_stopped_and_killed_at_a_random_moment_it_ends_with_the_same_bytes(unbroken, stopped, folder):
    expected, _ = unbroken
    workdir, *_ = stopped
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    kills = 0
    while True:
        process = start(*arguments(workdir, folder))
        try:
            # Anywhere from the imports to the end of the run; later ones see the run further on.
            process.communicate(timeout=rng.uniform(2.0, 12.0) if kills < 1 else 300)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
    assert process.returncode == 0
    for name in ("backbone.safetensors", "backbone.json"):
        assert (workdir / name).read_bytes() == (expected / name).read_bytes(), f"seed {seed}, {kills} kills"
    without = lambda lines: [{k: v for k, v in line.items() if k not in TIMES} for line in lines]  # noqa: E731
    assert without(read_metrics(workdir / "metrics.jsonl")) == without(read_metrics(expected / "metrics.jsonl"))


def test_neighbors_that_there_are_no_images_for_are_left_out_while_training(capsys):
    config = configs.get_config(f"{CONFIG}:tiny")
    config.online_knn.update(bank=300, queries=100, k=20)
    config = configs.parse(config)
    few = sources.ArraySource(np.zeros((24, 4, 4, 1), np.uint8), np.arange(24) % 2)
    method, values = build.method(config, build.schedule(config, 24, 2)), reading.normalization(config)
    assert make_online_knn(config, values, few, method, dist.make_local_mesh()) is None
    assert (
        "no kNN while training: config.online_knn.k=20 is more than the 18 images in the bank; use 18 or less"
        in capsys.readouterr().out
    )


@pytest.mark.slow
def test_a_finished_run_that_is_started_again_stays_as_it_was(unbroken, folder, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(unbroken[0], workdir)
    described = (workdir / "run.json").read_text().replace('"processes": 1', '"processes": 7')
    (workdir / "run.json").write_text(described)
    code, output = run_whole(*arguments(workdir, folder))
    assert code == 0 and "all 20 steps are done already" in output and "compiling" not in output
    assert (workdir / "run.json").read_text() == described and '"processes": 7' in described
    for name in ("metrics.jsonl", "backbone.safetensors"):
        assert (workdir / name).read_bytes() == (unbroken[0] / name).read_bytes()


@pytest.mark.slow
def test_where_no_checkpoint_can_be_made_the_program_ends_with_a_sentence_at_once(folder, tmp_path):
    code = "import os; mkdir = os.mkdir\n"
    code += "def refuse(path, *args, **options):\n"
    code += "    if 'orbax-checkpoint-tmp' in str(path): raise PermissionError(13, 'Permission denied', str(path))\n"
    code += "    mkdir(path, *args, **options)\n"
    code += "os.mkdir = refuse; import sys; from ssl_jax.cli import train; train.main(sys.argv[1:])"
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments(tmp_path / "run", folder)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,  # it would take 20 minutes
    )
    assert ended.returncode == 1
    assert "error: a checkpoint could not be written" in ended.stderr and "Permission denied" in ended.stderr


@pytest.mark.slow
def test_a_full_disk_is_a_sentence_and_with_room_the_run_goes_on_to_the_same_bytes(unbroken, folder, tmp_path):
    expected, _ = unbroken
    workdir = tmp_path / "run"
    whole = arguments(workdir, folder)
    # No file may grow beyond 20 kB: configs and metrics fit, the weights of a checkpoint do not.
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, -1)); "
    code += "from ssl_jax.cli import train; train.main(sys.argv[1:])"
    full = subprocess.run(
        [sys.executable, "-c", code, *whole],
        cwd=ROOT,
        env=environment(JAX_ENABLE_COMPILATION_CACHE="false"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert full.returncode == 1
    assert "error: a checkpoint could not be written" in full.stderr and "Make room there" in full.stderr
    # No traceback of ours; a thread of Orbax may still log its own.
    assert "train.py" not in full.stderr.split("error: a checkpoint")[1]
    assert read_metrics(workdir / "metrics.jsonl")[0]["step"] == 1
    code, output = run_whole(*whole)
    assert code == 0, output
    assert (workdir / "backbone.safetensors").read_bytes() == (expected / "backbone.safetensors").read_bytes()


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["--config.batch_size=128"], "fewer than one batch; use --config.batch_size=33"),
        (["--config.data.path=/nowhere/at/all"], "/nowhere/at/all"),
        (["--config.model.name=resnet19"], "resnet18"),
        (["--config.augment.view.flip=1.5"], "config.augment.view: flip"),
        (["--config.method.temperature=-1.0"], "config.method: temperature must be above 0, got -1.0"),
        (["--config.steps=0"], "both 0"),
    ],
)
def test_what_cannot_run_stops_before_any_work(tmp_path, folder, overrides, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        train.main(arguments(tmp_path / "run", folder, *overrides))
    assert message in str(stopped.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("memory_bytes", [0, 2**31])
def test_a_folder_of_which_no_file_can_be_decoded_is_a_sentence(tmp_path, memory_bytes):
    (tmp_path / "images").mkdir()
    for number in range(40):
        (tmp_path / "images" / f"{number}.png").write_text("not an image")
    with pytest.raises(SystemExit, match=r"error: none of the 40 images tried can be decoded, for example "):
        train.main(arguments(tmp_path / "run", tmp_path / "images", f"--config.data.memory_bytes={memory_bytes}"))


def test_a_workdir_below_a_file_is_a_sentence(tmp_path, folder):
    (tmp_path / "notes.txt").write_text("mine")
    for workdir in (tmp_path / "notes.txt", tmp_path / "notes.txt" / "run"):
        with pytest.raises(SystemExit, match=r"error: .*notes\.txt.*use another --workdir"):
            train.main(arguments(workdir, folder))
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_empty_folder_is_a_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="empty"):
        train.main(arguments(tmp_path / "run", tmp_path / "empty"))


def test_another_config_in_the_same_workdir_is_refused_with_the_difference(unbroken, folder):
    workdir, _ = unbroken
    with pytest.raises(SystemExit, match=r"optimizer\.lr: .* -> 0\.5"):
        train.main(arguments(workdir, folder, "--config.optimizer.lr=0.5"))


@pytest.mark.slow
def test_other_images_in_the_folder_of_a_run_are_refused(tmp_path):
    path, workdir = make_folder(tmp_path / "images"), tmp_path / "run"
    settings = arguments(workdir, path, "--config.steps=2", "--config.evaluate_every=0")
    train.main(settings)
    expected = (workdir / "backbone.safetensors").read_bytes()
    more = path / "064.png"
    more.write_bytes((path / "000.png").read_bytes())
    with pytest.raises(SystemExit, match="65 images, 64 when the run began"):
        train.main(settings)
    more.unlink()
    train.main(settings)
    assert (workdir / "backbone.safetensors").read_bytes() == expected
    more.write_bytes((path / "000.png").read_bytes())
    shutil.rmtree(workdir / "checkpoints")  # as of a run that has not come to one: there is no order to keep to
    train.main(settings)


def test_a_run_that_diverges_says_where_to_look(tmp_path, folder, capsys):
    """On eight devices, in bfloat16."""
    with pytest.raises(SystemExit, match=r"not finite in the last \d+ steps.*config\.optimizer\.lr"):
        train.main(
            arguments(
                tmp_path / "run",
                folder,
                "--config.compute_dtype=bfloat16",
                "--config.optimizer.lr=1e30",
                "--config.optimizer.warmup_steps=0",
                "--config.stop_after_skipped=3",
                "--config.evaluate_every=0",
            )
        )
    assert "8 cpu device(s)" in capsys.readouterr().out
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert np.isfinite(lines[0]["loss"]) and lines[-1]["skipped_steps"] >= 3


def test_seconds_of_the_watchdog_are_a_number():
    assert train.seconds_of("") == train.WATCHDOG_SECONDS
    assert train.seconds_of("0") == 0.0 and train.seconds_of("90.5") == 90.5


@pytest.mark.parametrize("text", ["-1", "soon", "nan", "inf"])
def test_other_seconds_are_a_sentence(text):
    with pytest.raises(configs.ConfigError, match=rf"--watchdog_seconds={text}: give a number of seconds, or 0"):
        train.seconds_of(text)


def test_steps_to_profile_are_checked_before_any_work(tmp_path, folder):
    with pytest.raises(SystemExit, match=r"error: --profile=5: give START:STOP"):
        train.main([*arguments(tmp_path / "run", folder), "--profile=5"])
    assert not (tmp_path / "run").exists()

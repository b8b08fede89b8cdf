import errno
import os
from pathlib import Path

import pytest

from ssl_jax import config as configs
from ssl_jax.cli import flags
from ssl_jax.configs import NAMES, scales
from ssl_jax.methods import Schedule
from ssl_jax.training import augmenting, build
from ssl_jax.training.config_keys import of_sections

SIMCLR = "simclr"


def read(*argv):
    return flags.read_flags(argv, program="test", sections=of_sections, strings={"workdir": "of the run"}).config


def test_scale_and_overrides_are_read():
    config = read(f"--config={SIMCLR}:cifar_r18", "--config.optimizer.lr=0.5", "--config.data.image_size=(64,48)")
    assert (config.model.name, config.optimizer.lr, config.data.image_size) == ("resnet18", 0.5, (64, 48))


@pytest.mark.parametrize(
    "flag, expected",
    [
        ("method.student_temperature=0.2", 0.2),
        ("model.base_width=8", 8),
        ("augment.local.crop_aspect=(0.5,2.0)", (0.5, 2.0)),
        ("optimizer.b2=0.95", 0.95),
        ("optimizer.clip_norm=1.0", 1.0),
    ],
)
def test_what_a_config_leaves_to_its_default_can_be_set(flag, expected):
    file, key = "dino:tiny", flag.split("=")[0]
    assert key not in configs.flatten(configs.get_config(file))
    config = read(f"--config={file}", f"--config.{flag}")
    assert configs.flatten(config)[key] == expected
    config = configs.parse(config)
    method = build.method(config, Schedule(batch_size=256, steps=10, steps_per_epoch=5, num_images=1280))
    augmenting.augmentations(config, method.views)
    build.optimizer(config, 10, method)


def test_given_weights_that_a_config_asks_for_can_be_set():
    config = read("--config=dino:continue", "--config.begin=weights.safetensors")
    assert configs.get_config("dino:continue").begin is None and config.begin == "weights.safetensors"
    assert configs.parse(config).begin == "weights.safetensors"


def test_keys_of_a_view_named_as_a_keyword_of_python_can_be_set():
    config = read("--config=swav:tiny", "--config.augment.global.size=(24,24)")
    assert config.augment["global"].size == (24, 24)
    with pytest.raises(configs.ConfigError, match=r"config\.augment\.global\.flip must be a number, got 'often'"):
        read("--config=swav:tiny", "--config.augment.global.flip=often")


def test_learning_rate_follows_the_batch_size():
    assert read("--config", f"{SIMCLR}:imagenet_r50").optimizer.lr == pytest.approx(4.8)
    assert read("--config", f"{SIMCLR}:imagenet_r50", "--config.batch_size=512").optimizer.lr == pytest.approx(0.6)


@pytest.mark.parametrize(
    "argv, message",
    [
        ([], "--config is missing"),
        (
            ["--config=simlcr:tiny"],
            "no config 'simlcr' (the name of your own file ends in .py); did you mean 'simclr'?",
        ),
        (["--config=own/simclr.py"], "the package's own config is named without .py: simclr"),
        (
            [f"--config={SIMCLR}:huge"],
            "simclr has no scale 'huge'; it has tiny, folder, continue, cifar_r18, imagenet_r50",
        ),
        ([f"--config={SIMCLR}", "--config.optimzer.lr=1"], "config has no key 'optimzer'; did you mean 'optimizer'"),
        (
            [f"--config={SIMCLR}", "--config.evalute_every=1"],
            "config has no key 'evalute_every'; did you mean 'evaluate_every'",
        ),
        ([f"--config={SIMCLR}", "--config.model.nme=x"], "config.model has no key 'nme'; did you mean 'name'"),
        (
            [f"--config={SIMCLR}", "--config.method.temprature=1.0"],
            "config.method has no key 'temprature'; did you mean 'temperature'",
        ),
        ([f"--config={SIMCLR}", "--config.optimizer.steps=3"], "config.optimizer has no key 'steps'"),
        (
            [f"--config={SIMCLR}", "--config.model.microbatch=1"],
            # each once
            "bottleneck, groups, head_layers, inner_width, name, remat, selective_kernels, stages, stem, stem_width, "
            "width, zero_init_residual",
        ),
        ([f"--config={SIMCLR}", "--config.seed.x=1"], "config.seed is a value, 0, and has no keys"),
        ([f"--config={SIMCLR}", "--config.batch_size=abc"], "config.batch_size must be an integer, got 'abc'"),
        ([f"--config={SIMCLR}", "--config.batch_size=0.5"], "config.batch_size must be an integer, got '0.5'"),
        ([f"--config={SIMCLR}", "--config.optimizer.lr=fast"], "config.optimizer.lr must be a number, got 'fast'"),
        ([f"--config={SIMCLR}", "--config.shard_state=maybe"], "config.shard_state must be True or False, got 'maybe'"),
        (
            [f"--config={SIMCLR}", "--config.optimizer=sgd"],
            "config.optimizer is a section; set one of its keys, --config.optimizer.KEY=VALUE (final_lr, lr, name",
        ),
        ([f"--config={SIMCLR}", "--wrkdir=x"], "workdir"),
        ([f"--config={SIMCLR}", "junk"], "unexpected argument 'junk'"),
    ],
)
def test_a_wrong_command_line_is_a_sentence(argv, message):
    with pytest.raises(configs.ConfigError) as raised:
        read(*argv)
    assert message in str(raised.value)
    assert "Traceback" not in str(raised.value)


@pytest.mark.parametrize(
    "number, remedy",
    [(errno.ENOSPC, "make room there"), (errno.EROFS, "another path"), (errno.EIO, "the disk fails")],
)
def test_an_error_of_the_disk_is_a_sentence_with_the_file(number, remedy):
    with pytest.raises(SystemExit) as stopped, flags.user_errors():
        raise OSError(number, os.strerror(number), "run/one.json")
    assert str(stopped.value).startswith(f"error: run/one.json: {os.strerror(number)}; ")
    assert remedy in str(stopped.value)


def test_a_file_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    flags.check_file("out", tmp_path / "new.npz")
    flags.check_file("out", tmp_path / "file")
    with pytest.raises(configs.ConfigError, match=r"--out=.*x/new\.npz: there is no directory .*x; make it first"):
        flags.check_file("out", tmp_path / "x" / "new.npz")
    with pytest.raises(configs.ConfigError, match=r"--out=.*: it is a directory; give the name of a file"):
        flags.check_file("out", tmp_path)


def test_a_directory_that_cannot_be_made_is_refused_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    flags.check_directory("workdir", tmp_path)
    flags.check_directory("workdir", tmp_path / "runs" / "first")
    for path in (tmp_path / "file", tmp_path / "file" / "runs" / "first"):
        with pytest.raises(configs.ConfigError, match=r"--workdir=.*: .*file is a file; use another --workdir"):
            flags.check_directory("workdir", path)
    monkeypatch.setattr(flags.os, "access", lambda path, mode: path != tmp_path)  # root may write everywhere
    with pytest.raises(configs.ConfigError, match=rf"{tmp_path} cannot be written; make it writable"):
        flags.check_directory("workdir", tmp_path / "runs" / "first")


def test_other_errors_of_the_system_keep_their_traceback():
    with pytest.raises(FileNotFoundError), flags.user_errors():
        Path("/nowhere/at/all").read_text()


def test_a_config_of_ones_own_is_read_by_path_and_a_misspelt_one_is_told_the_nearest(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(
        "from ssl_jax.configs import simclr\n\n\ndef get_config(scale='tiny'):\n    config = simclr.get_config(scale)\n"
        "    config.steps = 7\n    return config\n"
    )
    monkeypatch.chdir(tmp_path)
    assert read("--config=own.py").steps == 7
    assert read("--config", "own.py:folder").data.name == "folder"
    with pytest.raises(configs.ConfigError, match=r"no config file 'onw\.py'.*did you mean own\.py"):
        read("--config=onw.py:tiny")


@pytest.mark.parametrize("name", NAMES)
def test_every_scale_of_every_config_passes_the_check(name):
    for scale in scales(name):
        configs.parse(configs.get_config(f"{name}:{scale}"))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(batch_size=0), "batch_size must be at least 1, got 0"),
        (dict(steps=0), "steps and config.epochs are both 0"),
        (dict(steps=-5), "steps must be at least 0, got -5"),
        (dict(seed=2**32), r"config\.seed must be in 0\.\.4294967295, got 4294967296"),
        (dict(compute_dtype="float16"), "must be one of float32, bfloat16, got 'float16'"),
        (dict(evaluate_every=75), "evaluate_every=75 is not a multiple of config.log_every=50; use 100"),
        ({"data.image_size": (0, 28)}, r"image_size must be \(height, width\) in pixels, got \(0, 28\)"),
        ({"data.mean": (0.5, 0.5)}, "mean has 2 values for config.data.channels=1"),
        ({"data.std": (0.0,)}, "std must be above 0"),
        ({"optimizer.lr": -1.0}, "lr must be above 0, got -1.0"),
        ({"optimizer.warmup_steps": -1}, "warmup_steps must be at least 0"),
    ],
)
def test_an_impossible_value_is_a_sentence(change, message):
    config = read(f"--config={SIMCLR}")
    config.update_from_flattened_dict(change)
    with pytest.raises(configs.ConfigError, match=message):
        configs.parse(config)


def test_an_unknown_key_of_a_config_file_is_told_the_nearest():
    config = read(f"--config={SIMCLR}")
    with config.unlocked():
        config.evalute_every = 3
    with pytest.raises(configs.ConfigError, match="no key 'evalute_every'; did you mean 'evaluate_every'"):
        configs.parse(config)


def test_a_config_of_a_study_is_told_from_one_of_a_run():
    with pytest.raises(configs.ConfigError, match="of a study, 'label_efficiency'; run it with ssl_jax study"):
        configs.parse(configs.get_config("label_efficiency"))


def test_a_batch_that_does_not_divide_names_the_nearest_that_do():
    configs.check_devices(96, 8)
    with pytest.raises(configs.ConfigError, match="batch_size=100 does not divide over 8 devices; use 96 or 104"):
        configs.check_devices(100, 8)
    with pytest.raises(configs.ConfigError, match=r"use 8$"):
        configs.check_devices(3, 8)


def test_build_names_unknown_names_keys_and_refused_values():
    def make(base, *, rate=1.0):
        if rate < 0:
            raise ValueError(f"rate must be at least 0, got {rate}")
        return base * rate

    for values, message in [
        (dict(name="mkae"), "config.x.name='mkae' is unknown; did you mean 'make'"),
        (dict(name="make", rte=2.0), "config.x has no key 'rte'; did you mean 'rate'"),
        (dict(name="make", base=2.0), "config.x has no key 'base'"),
        (dict(name="make", rate=-2.0), "config.x: rate must be at least 0, got -2.0"),
    ]:
        with pytest.raises(configs.ConfigError, match=message):
            configs.build({"make": make}, values, "config.x", 3)
    assert configs.build({"make": make}, dict(name="make", rate=2.0), "config.x", 3) == 6.0


def test_an_error_that_says_where_is_not_prefixed_again():
    def make():
        raise configs.ConfigError("config.y must be even, got 3")

    with pytest.raises(configs.ConfigError, match=r"^config\.y must be even"):
        configs.call(make, {}, "config.x")


def test_json_keeps_a_config():
    config = read(f"--config={SIMCLR}:imagenet_r50")
    again = configs.loads(configs.dumps(config))
    assert configs.differences(config, again) == []
    again.optimizer.lr = 1.0
    assert configs.differences(config, again) == ["optimizer.lr: 4.8 -> 1.0"]

"""Accelerators by stub device files; that JAX has no plugin here but libtpu, perhaps, is a part of each case."""

import importlib.util
import sys

import jax
import pytest

from ssl_jax import dist
from ssl_jax.cli import embed, train
from ssl_jax.dist import accelerators


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Device files, PCI vendor, kinds with a plugin, platforms asked for -> the directory of dev/ and sys/."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    before = jax.config.jax_platforms

    def make(*files, vendor="", plugins=(), platforms=""):
        for name in files:
            path = tmp_path / "dev" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        pci = tmp_path / "sys/bus/pci/devices/0000:00:04.0"
        pci.mkdir(parents=True)
        (pci / "vendor").write_text(f"{vendor}\n")
        monkeypatch.setattr(accelerators, "_has_plugin", lambda kind: kind in plugins)
        jax.config.update("jax_platforms", platforms)
        return tmp_path

    yield make
    jax.config.update("jax_platforms", before)


@pytest.mark.parametrize(
    "files, vendor, expected",
    [
        ((), "0x1ae0", None),
        (("nvidia0", "nvidiactl"), "0x10de", "gpu"),
        (("nvidiactl",), "0x10de", None),  # the driver without a card
        (("accel0",), "0x1ae0", "tpu"),
        (("vfio/vfio", "vfio/0"), "0x1ae0", "tpu"),
        (("vfio/0",), "0x10de", None),  # a card that is lent to a virtual machine
        (("accel/accel0",), "0x8086", None),  # a laptop's NPU
    ],
)
def test_what_a_machine_has(machine, files, vendor, expected):
    assert accelerators.accelerator(machine(*files, vendor=vendor)) == expected


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_hidden_gpus_do_not_count(machine, monkeypatch, hidden):
    root = machine("nvidia0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert accelerators.accelerator(root) is None
    dist.use_platform(root=root)


@pytest.mark.parametrize(
    "files, vendor, sentence",
    [
        (("nvidia0",), "0x10de", r"has an NVIDIA GPU, but .* pip install 'jax\[cuda12\]==[\d.]+', .*--platform cpu"),
        (("vfio/0",), "0x1ae0", r"has a TPU, but .* pip install 'jax\[tpu\]==[\d.]+', .*--platform cpu"),
    ],
)
def test_an_accelerator_without_its_plugin_stops(machine, files, vendor, sentence):
    root = machine(*files, vendor=vendor)
    with pytest.raises(dist.PlatformError, match=sentence):
        dist.use_platform(root=root)
    dist.use_platform("cpu", root=root)
    assert jax.config.jax_platforms == "cpu"
    dist.use_platform(root=root)  # by JAX_PLATFORMS=cpu


def test_platforms_that_are_asked_for(machine):
    root = machine("nvidia0", plugins=("gpu",))
    dist.use_platform(root=root)
    assert jax.config.jax_platforms == ""  # as JAX chooses
    dist.use_platform("gpu", root=root)
    assert jax.config.jax_platforms == "cuda,cpu"
    with pytest.raises(dist.PlatformError, match="--platform=tpu: this machine has no device file of a TPU"):
        dist.use_platform("tpu", root=root)
    with pytest.raises(dist.PlatformError, match="--platform=metal: it is one of cpu, gpu, tpu"):
        dist.use_platform("metal", root=root)


def test_platforms_asked_for_by_the_environment_need_a_plugin(machine):
    with pytest.raises(dist.PlatformError, match="JAX_PLATFORMS=cuda asks for a GPU or TPU, but"):
        dist.use_platform(root=machine(platforms="cuda,cpu"))


def test_which_plugin_is_missing(machine):
    root = machine("nvidia0")
    assert dist.missing_plugin(root=root) == f"jax[cuda12]=={jax.__version__}"
    jax.config.update("jax_platforms", "cpu")
    assert dist.missing_plugin(root=root) == ""


def test_a_plugin_that_cannot_use_the_device(machine):
    """JAX has started here with the CPU alone."""
    root = machine("nvidia0", plugins=("gpu",))
    with pytest.raises(dist.PlatformError, match="JAX's plugin cannot use it"):
        dist.check_platform(root=root)
    dist.use_platform("cpu", root=root)
    dist.check_platform(root=root)


@pytest.mark.parametrize(
    "main, arguments",
    [
        (train.main, ["--config=simclr:tiny", "--workdir={0}/run"]),
        (embed.main, ["--workdir={0}/run", "--data={0}", "--out={0}/features.npz"]),
    ],
)
def test_commands_stop_before_any_work(machine, monkeypatch, main, arguments):
    root = machine("nvidia0")
    monkeypatch.setattr(accelerators, "accelerator", lambda *_: "gpu")
    with pytest.raises(SystemExit, match="error: this machine has an NVIDIA GPU, but"):
        main([argument.format(root) for argument in arguments])
    assert not (root / "run").exists()


def test_plugins_are_found_without_loading_them(tmp_path, monkeypatch):
    (tmp_path / "jax_plugins" / "xla_cuda99").mkdir(parents=True)
    (tmp_path / "jax_plugins" / "xla_cuda99" / "__init__.py").write_text("raise RuntimeError")
    before = accelerators._has_plugin("gpu")
    assert before is any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13))
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("jax_plugins", None)  # whose path was found before
    assert accelerators._has_plugin("gpu") is True

"""The accelerators of this machine, and whether JAX can compute on them.

JAX without the plugin of a GPU or TPU computes on the CPU and says nothing. The commands stop instead.
"""

import importlib.util
import os
import pkgutil
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import jax

Kind = Literal["gpu", "tpu"]
# --platform -> JAX's names. The CPU is in each, for what is small.
PLATFORMS = {"cpu": "cpu", "gpu": "cuda,cpu", "tpu": "tpu,cpu"}
KINDS: dict[str, Kind] = {"gpu": "gpu", "cuda": "gpu", "tpu": "tpu"}  # by JAX's names
TITLES: dict[Kind, str] = {"gpu": "an NVIDIA GPU", "tpu": "a TPU"}
# CUDA 12 has no older driver or card than CUDA 13 that it does not run on, and runs on newer ones, too.
EXTRAS: dict[Kind, str] = {"gpu": "cuda12", "tpu": "tpu"}
GOOGLE = "0x1ae0"  # PCI vendor: files such as /dev/accel0 and /dev/vfio/0 may belong to other devices


class PlatformError(RuntimeError):
    """Devices that JAX cannot compute on; its text is for the user."""


def use_platform(name: str = "", *, root: Path = Path("/")) -> None:
    """Makes JAX compute on the CPU, the GPUs or the TPUs. Call it before anything else that uses JAX's devices.

    Args:
      name: one of PLATFORMS; "" for what JAX_PLATFORMS says, else for what the machine has.
      root: the directory of dev/ and sys/.
    Raises: PlatformError for another name; where the machine does not have what `name` asks for; and where JAX has no
      plugin for the GPU or TPU that is asked for, or else that the machine has.
    """
    here = accelerator(root)
    if name and name not in PLATFORMS:
        raise PlatformError(f"--platform={name}: it is one of {', '.join(PLATFORMS)}")
    if name in KINDS and here != KINDS[name]:
        raise PlatformError(
            f"--platform={name}: this machine has no device file of {TITLES[KINDS[name]]}; leave --platform out, or "
            "give the container its devices (docker run --gpus all, or --privileged for a TPU)"
        )
    if name:
        jax.config.update("jax_platforms", PLATFORMS[name])
    if missing := missing_plugin(root=root):
        why = f"JAX_PLATFORMS={_first()} asks for a GPU or TPU" if here is None else f"this machine has {TITLES[here]}"
        raise PlatformError(
            f"{why}, but this JAX computes on CPUs only; pip install '{missing}', or go on with --platform cpu"
        )


def check_platform(*, root: Path = Path("/")) -> None:
    """Raises: PlatformError if JAX has a plugin for this machine's GPU or TPU, but came up with the CPU.

    Starts JAX's devices, so the processes of a run must have met before.
    """
    here = accelerator(root)
    if here and not _first() and jax.default_backend() == "cpu":
        raise PlatformError(
            f"this machine has {TITLES[here]}, but JAX's plugin cannot use it (JAX says why above: an old driver, or "
            "another program that holds it); mend that, or go on with --platform cpu"
        )


def missing_plugin(*, root: Path = Path("/")) -> str:
    """What pip is to install, "jax[cuda12]==0.10.2", for the GPU or TPU that JAX_PLATFORMS asks for, or else that the
    machine has; "" if it is installed, or the CPU is asked for."""
    kind = KINDS.get(_first()) if _first() else accelerator(root)
    return f"jax[{EXTRAS[kind]}]=={jax.__version__}" if kind and not _has_plugin(kind) else ""


def accelerator(root: Path = Path("/")) -> Kind | None:
    """What this machine has, by its device files. GPUs that CUDA_VISIBLE_DEVICES hides do not count."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    if not hidden and any(root.glob("dev/nvidia[0-9]*")):
        return "gpu"
    if any(root.glob("dev/accel[0-9]*")) or any(root.glob("dev/vfio/[0-9]*")):
        vendors = root.glob("sys/bus/pci/devices/*/vendor")
        return "tpu" if any(path.read_text().strip() == GOOGLE for path in vendors) else None
    return None


def _first() -> str:
    """The platform that --platform, JAX_PLATFORMS or the program asks JAX for; "" for JAX's own choice."""
    settings: Any = jax.config  # which makes its attributes at run time
    return (settings.jax_platforms or "").split(",")[0]


def _has_plugin(kind: Kind) -> bool:
    """Looks where JAX looks for plugins (jax._src.xla_bridge.discover_pjrt_plugins), and loads none."""
    if kind == "tpu":
        return importlib.util.find_spec("libtpu") is not None
    folder = importlib.util.find_spec("jax_plugins")
    modules = pkgutil.iter_modules((folder and folder.submodule_search_locations) or [])
    points = metadata.entry_points(group="jax_plugins")
    return any("cuda" in name for name in [*(m.name for m in modules), *(point.value for point in points)])

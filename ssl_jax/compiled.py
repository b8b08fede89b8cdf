"""How programs are compiled: with a persistent cache, and with options for those that run on a CPU once, or often.

JAX's cache is on by default: a program that was compiled once starts at once. It is in ~/.cache/ssl_jax/compiled (or
below $XDG_CACHE_HOME); a run of several processes has it in its workdir, in compiled/. There is a directory for each
kind of processor and version of JAX, which may be deleted at any time. JAX_COMPILATION_CACHE_DIR names another place,
and JAX_ENABLE_COMPILATION_CACHE=false turns it off.
"""

import functools
import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import jax

from ssl_jax import paths

LEVEL = "xla_backend_optimization_level"
# XLA's older emitters take less time for many small operations. jaxlib 0.11.1 has lost them, and refuses the option.
OLDER_EMITTERS: dict[str, Any] = {"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11, 1) else {}
# jaxlib 0.10 to 0.12 hand convolutions on a CPU to YNNPACK, which computes each of them on one thread. Products and
# sums, which it computes faster than XLA does, stay with it.
YNNPACK = "xla_cpu_experimental_ynn_fusion_type"
WITH_YNNPACK = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
LEAST_SECONDS = 0.2  # that compiling took: what is faster is not worth a file


def keep(workdir: Any = None) -> None:
    """Turns the cache on, unless the environment or the program has set its place, or turned it off.

    workdir: of a run of several processes. Only the first process writes to JAX's cache, so it must be where all can
    read; and the next start may be on other machines.
    """
    settings: Any = jax.config  # which makes its attributes at run time
    if settings.jax_compilation_cache_dir or not settings.jax_enable_compilation_cache:
        return
    jax.config.update("jax_compilation_cache_dir", str(directory(workdir)))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)


def options_of_once(platform: str) -> dict[str, Any] | None:
    """`compiler_options` of `jax.jit` for a program that runs once on such devices ("cpu", "gpu", "tpu"), so that
    compiling it fast matters more than its speed. None: XLA's defaults.

    On a CPU, LLVM optimizes at level 1 of 3, unless XLA_FLAGS names a level, and XLA uses its older emitters if it has
    them. Both give the same numbers, bit for bit; level 0 would not. Train steps keep level 3: at level 1 those of
    BiGAN take 1.14 of the time.
    """
    if platform != "cpu" or LEVEL in os.environ.get("XLA_FLAGS", ""):
        return None
    return {LEVEL: 1, **OLDER_EMITTERS}


def options_of_steps(platform: str) -> dict[str, Any] | None:
    """`compiler_options` of the outermost `jax.jit` of a program with convolutions that runs many times on such devices
    ("cpu", "gpu", "tpu"). None: XLA's defaults.

    On a CPU, XLA's own convolutions, which all cores share, take the place of YNNPACK's, unless XLA_FLAGS chooses.
    """
    if platform != "cpu" or YNNPACK in os.environ.get("XLA_FLAGS", "") or not _has_ynnpack():
        return None
    return {YNNPACK: WITH_YNNPACK}


@functools.cache
def _has_ynnpack() -> bool:
    """Whether this jaxlib knows the option and its values."""
    try:
        jax.jit(lambda: 0).lower().compile({YNNPACK: WITH_YNNPACK})
    except jax.errors.JaxRuntimeError:
        return False
    return True


def directory(workdir: Any = None) -> Any:
    """Where the programs of this machine are kept: a path; that of `workdir`'s kind if there is one."""
    # Programs for one CPU may not run on another, whose home may be the same.
    machine = f"{platform.machine()} {_cpu_flags()} {jax.__version__}"
    return (workdir or paths.caches()) / "compiled" / hashlib.sha256(machine.encode()).hexdigest()[:12]


def _cpu_flags() -> str:
    """What Linux says that the CPU can do; "" elsewhere."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")

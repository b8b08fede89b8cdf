"""XLA's flags in the tests, and the environment of the programs that tests start.

Does not import JAX, which reads the flags when it is imported.
"""

import os
from importlib import metadata
from pathlib import Path

# Most of a test's time goes into compiling. Without these optimizations it takes a sixth of it. A test of what the
# optimized program does says so to jax.jit (compiler_options={"xla_backend_optimization_level": 3}).
FAST = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
    # jaxlib 0.11.1 has lost its older emitters. It aborts at a flag that it does not know.
    *(["--xla_cpu_use_fusion_emitters=false"] if metadata.version("jaxlib").startswith(("0.10.", "0.11.0")) else []),
)


def flags(devices: int) -> str:
    return " ".join((f"--xla_force_host_platform_device_count={devices}", *FAST))


def environment(devices: int = 1, **changes: str) -> dict[str, str]:
    """For a program with so many devices: one, as a user's machine has it; the tests themselves have eight."""
    return {**os.environ, "XLA_FLAGS": flags(devices), "PYTHONPATH": str(Path(__file__).parents[1]), **changes}

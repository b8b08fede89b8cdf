from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest

from ssl_jax import compiled

NAMES = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture(autouse=True)
def devices():
    """Made before a test changes XLA_FLAGS, which says how many there are."""
    jax.devices()


@pytest.fixture
def unset(monkeypatch, tmp_path):
    """No place of the cache is set; it would be below tmp_path."""
    before = {name: getattr(jax.config, name) for name in NAMES}
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_cache_is_on_by_default_in_a_folder_for_this_machine(unset):
    compiled.keep()
    place = Path(jax.config.jax_compilation_cache_dir)
    assert place.parent == unset / "ssl_jax" / "compiled" and place == compiled.directory()


def test_another_processor_has_another_folder(unset, monkeypatch):
    here = compiled.directory()
    monkeypatch.setattr(compiled, "_cpu_flags", lambda: "flags: fpu")
    assert compiled.directory() != here


def test_a_place_that_is_set_stays(unset):
    jax.config.update("jax_compilation_cache_dir", "/somewhere")
    compiled.keep()
    assert jax.config.jax_compilation_cache_dir == "/somewhere"


def test_a_cache_that_is_turned_off_stays_off(unset):
    jax.config.update("jax_enable_compilation_cache", False)
    compiled.keep()
    assert not jax.config.jax_compilation_cache_dir


def test_llvm_optimizes_less_on_a_cpu_unless_a_level_is_set(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    options = compiled.options_of_once("cpu")
    assert options == {"xla_backend_optimization_level": 1, **compiled.OLDER_EMITTERS}
    jax.jit(lambda x: x + 1, compiler_options=options)(1.0)  # this jaxlib knows them
    assert compiled.options_of_once("gpu") is None and compiled.options_of_once("tpu") is None
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=3")
    assert compiled.options_of_once("cpu") is None


def test_all_cores_share_a_convolution(monkeypatch):
    """In jaxlib 0.10 to 0.12 YNNPACK would compute it on one thread."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    module = nn.Conv(8, (3, 3))
    images = np.zeros((4, 8, 8, 3), np.float32)
    variables = module.init(jax.random.key(0), images)
    program = jax.jit(module.apply).lower(variables, images).compile(compiled.options_of_steps("cpu")).as_text()
    assert "convolution(" in program and "ynn_fusion" not in program
    assert compiled.options_of_steps("gpu") is None and compiled.options_of_steps("tpu") is None
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=")
    assert compiled.options_of_steps("cpu") is None


def test_a_jaxlib_without_the_option_compiles_as_it_does(monkeypatch):
    monkeypatch.setattr(compiled, "YNNPACK", "xla_cpu_no_such_option")
    compiled._has_ynnpack.cache_clear()
    assert compiled.options_of_steps("cpu") is None
    compiled._has_ynnpack.cache_clear()


def test_a_state_that_is_compiled_fast_has_the_values_of_one_that_is_optimized(monkeypatch):
    """Bit for bit: initial values come from random bits by polynomials, which LLVM's level 0 rounds otherwise."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    fast = compiled.options_of_once("cpu")
    module = nn.Conv(8, (3, 3))
    lowered = jax.jit(module.init).lower(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))
    full = {"xla_backend_optimization_level": 3, **dict.fromkeys(compiled.OLDER_EMITTERS, True)}
    made, expected = (
        lowered.compile(compiler_options=options)(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))
        for options in (fast, full)
    )
    jax.tree.map(np.testing.assert_array_equal, made, expected)

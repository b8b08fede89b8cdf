from pathlib import Path

import jax
import pytest

from ssl_jax import compiled

NAMES = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
)


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

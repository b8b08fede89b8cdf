"""Runs before any test module is imported: the devices, the compilation cache, the checking of annotations, and what is
said of times."""

import gc
import os
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flags import flags

# Before JAX is imported.
# benchmarks/accelerator.py runs the tests that need one device on a GPU or TPU.
os.environ["JAX_PLATFORMS"] = os.environ.get("SSL_JAX_TEST_PLATFORM", "cpu")
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), flags(devices=int(os.environ.get("SSL_JAX_TEST_DEVICES", "8")))]
).strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import jaxtyping
from flax.linen import linear

# Every annotated argument and result of the package is checked, shapes included, in all that is imported after this.
# The tower: an int is accepted for a float, as it is by Python's typing.
jaxtyping.install_import_hook("ssl_jax", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")
# A field of Flax's Conv has this annotation, which beartype refuses for a subclass unless it can be checked.
typing.runtime_checkable(linear.PromoteDtypeFn)
jaxtyping.config.update("jaxtyping_remove_typechecker_stack", True)

from tests import compiled, times  # noqa: E402, after the hook: their imports are checked, too

compiled.install()
# Tracing makes many small objects that stay: looking through them for garbage as often as Python does by itself takes a
# fifteenth of the time.
gc.freeze()
gc.set_threshold(200_000, 20, 100)
pytest_addoption = times.add_options


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(times.Times(config))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    times.keep_a_third(config, items)


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is None or nextitem.path != item.path:
        compiled.release()


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Annotations are not checked: for tests of what a function itself refuses, as users meet it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)

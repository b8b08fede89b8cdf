"""The configs that come with the package, found by name: `ssl_jax.get_config("simclr:tiny")`. One file a method."""

import importlib
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

NAMES = tuple(sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py")))  # those of the methods


def scales(name: str) -> dict[str, Callable[[], ConfigDict]]:
    """What makes the config of a method at each of its scales."""
    return importlib.import_module(f"{__name__}.{name}").SCALES

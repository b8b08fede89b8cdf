"""The configs that come with the package, found by name: `ssl_jax.get_config("simclr:tiny")`. One file per method.

Numbers such as "92.10 linear" in their docstrings are published accuracies, in percent.
"""

import importlib
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

NAMES = tuple(sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py")))  # those of the methods


def scales(name: str) -> dict[str, Callable[[], ConfigDict]]:
    """Scale of the method -> function that makes its config at that scale."""
    return importlib.import_module(f"{__name__}.{name}").SCALES

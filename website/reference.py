"""The pages of the reference: every public symbol, from its docstring."""

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

from ssl_jax.methods import METHODS

FOLDER = "reference"
# Package -> what its page says first. Public is what `__all__` has, or, without one, each module of the package.
PACKAGES = {
    "ssl_jax": "What users call. `import ssl_jax` loads none of it before its first use.",
    "ssl_jax.data": "Images: how they are opened, divided, read and packed. [Data](docs/data.md) has it in words.",
    "ssl_jax.losses": "Pure functions. With `axis_name`, the mean over devices is the loss of the whole batch.",
    "ssl_jax.methods": "What a method is. [The methods](docs/methods/index.md) have pages of their own.",
    "ssl_jax.methods.toolkit": "What methods are made of.",
    "ssl_jax.models": "Backbones and heads. [Backbones and published weights](docs/weights.md) lists the names.",
    "ssl_jax.weights": "Backbones with their weights, from files and to files.",
    "ssl_jax.evaluation": "Protocols as functions. [Protocols](docs/protocols.md) has them in words.",
    "ssl_jax.health": "Metrics without labels. [Metrics](docs/metrics.md) has their formulas.",
    "ssl_jax.optim": "Optimizers and schedules. [Configs](docs/configs.md) has their keys.",
    "ssl_jax.config": "Configs: how they are found, changed, checked and parsed.",
    "ssl_jax.keys": "What a key of a config is, for options of your own methods.",
    "ssl_jax.ops": "Sums, means and softmax over the rows of all devices; for losses of your own.",
}


def symbols(package: str) -> list[str] | None:
    """The public names of a package, or None where all of its modules are public."""
    names = getattr(importlib.import_module(package), "__all__", None)
    return None if names is None else list(names)


def modules(package: str) -> Iterator[str]:
    """Those of a package whose names are public; a module itself."""
    path = getattr(importlib.import_module(package), "__path__", None)
    if path is None:
        yield package
    for found in pkgutil.iter_modules(path or ()):
        if not found.name.startswith("_"):
            yield f"{package}.{found.name}"


def page_name(package: str) -> str:
    return f"{FOLDER}/{package.removeprefix('ssl_jax.')}.md"


def pages() -> dict[str, str]:
    """Page -> its Markdown. A symbol that several packages export stands on the page of the first."""
    elsewhere: list[Any] = [*METHODS.values()]
    found: dict[str, str] = {}
    for package, about in PACKAGES.items():
        lines = [f"# {package}", about]
        names = symbols(package)
        if names is None:
            lines += [f"::: {module}" for module in modules(package)]
        for name in names or ():
            symbol = getattr(importlib.import_module(package), name)
            if not any(symbol is other for other in elsewhere) and not hasattr(symbol, "__path__"):
                elsewhere.append(symbol)
                lines.append(f"::: {package}.{name}")
        found[page_name(package)] = "\n\n".join(lines) + "\n"
    return found

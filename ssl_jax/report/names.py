"""What the pages call things."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssl_jax.methods import METHODS

# As their authors write them.
DATA_NAMES = {
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "stl10": "STL-10",
    "imagenet2012": "ImageNet",
}


def method(config: Mapping[str, Any]) -> str:
    """Of a run; "" if its config is not known."""
    name = config.get("method", {}).get("name", "")
    return METHODS[name].__name__ if name in METHODS else name


def data(config: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """Of the images that a run was trained on, as config.json and run.json say; "" if they do not.

    Where a program gave the images, the config's section `data` is not about them.
    """
    source, section = facts.get("source", {}), config.get("data", {})
    if source.get("given"):
        return measured(source)
    name = Path(section["path"]).name if section.get("path") else section.get("name", "")
    return DATA_NAMES.get(name, name)


def measured(source: Mapping[str, Any]) -> str:
    """Of a source as run.json and evaluation.json describe it, by "name" and "kind"; "" where they do not."""
    name, kind = source.get("name", ""), source.get("kind")
    if kind == "FolderSource":
        name = Path(name).name
    elif kind == "TFDSSource":
        name = name.split("/")[0]  # without the split
    return DATA_NAMES.get(name, name)


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def short(text: str, most: int) -> str:
    """At most `most` characters of it."""
    return text if len(text) <= most else text[: most - 1] + "…"

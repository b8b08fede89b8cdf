"""Names of things on the pages."""

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
    "emoji_google": "Google's emoji",
    "emoji_twitter": "Twitter's emoji",
}


def method(config: Mapping[str, Any]) -> str:
    """Name of a run's method; "" if its config is not known."""
    name = config.get("method", {}).get("name", "")
    return METHODS[name].__name__ if name in METHODS else name


def data(config: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """Name of the images that a run was trained on, from config.json and run.json; "" if they do not say.

    If a program gave the images, the config's section `data` does not describe them.
    """
    source, section = facts.get("source", {}), config.get("data", {})
    if source.get("given"):
        return measured(source)
    name = Path(section["path"]).name if section.get("path") else section.get("name", "")
    return DATA_NAMES.get(name, name)


def measured(source: Mapping[str, Any]) -> str:
    """Name of a source that run.json or evaluation.json describes by "name" and "kind"; "" if they do not."""
    name, kind = source.get("name", ""), source.get("kind")
    if kind == "FolderSource" or Path(name).is_absolute():
        name = Path(name).name
    elif kind == "TFDSSource":
        name = name.split("/")[0]  # without the split
    return DATA_NAMES.get(name, name)


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def short(text: str, most: int) -> str:
    """At most `most` characters of the text."""
    return text if len(text) <= most else text[: most - 1] + "…"

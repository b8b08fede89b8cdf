"""Flags that several commands share: which backbone, and which image size."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Num

from ssl_jax import compiled
from ssl_jax import config as configs
from ssl_jax.cli.flags import PLATFORM
from ssl_jax.data import opening
from ssl_jax.data.sources import Source
from ssl_jax.data.statistics import statistics
from ssl_jax.training.measuring import first_image
from ssl_jax.weights import INFLATIONS, Backbone, load_backbone

OF_FILE = {  # flags of --backbone that load_backbone has, too
    "prefix": "of the backbone's tensors, if the file of --backbone has several networks",
    "patch_size": "side, in pixels, that the patches of --backbone are resized to",
    "channels": "of the images, if others than those of --backbone",
    "inflate": f"how the first convolution is made for --channels: {', '.join(INFLATIONS)}; default: sum",
}
FLAGS = {
    "workdir": "directory of a finished run of ssl_jax train",
    "backbone": "file of weights (.safetensors), instead of --workdir",
    "model": "architecture of --backbone, if its file does not name it",
    **OF_FILE,
    **PLATFORM,
}
DATA = f"{opening.WHAT}; or the name of a TFDS data set (docs/data.md)"
WINDOWS = (
    "where large images are read by windows, as in training: mean, over the windows of each image (default); or all, "
    "each window as an image"
)
IMAGE_SIZE = "size at which images are read, in pixels, SIDE or HEIGHTxWIDTH; default: that of the backbone's training"


def check(flags: Any) -> None:
    """Raises: ConfigError unless exactly one of --workdir and --backbone is given, and for flags of the other one."""
    if bool(flags.workdir) == bool(flags.backbone):
        raise configs.ConfigError(
            "give --workdir (of a run of ssl_jax train) or --backbone (a file of weights), and not both"
        )
    for name in ("model", *OF_FILE):
        if flags.workdir and getattr(flags, name):
            raise configs.ConfigError(
                f"--{name}={getattr(flags, name)} goes with --backbone only; leave it out: a run has its own"
            )


def load(flags: Any) -> Backbone:
    """The backbone that --workdir or --backbone names. Raises: ConfigError as `check`, and if it cannot be loaded."""
    compiled.keep()
    check(flags)
    if flags.workdir:
        return configs.call(load_backbone, {}, "--workdir", flags.workdir)
    options = {"prefix": flags.prefix or None, "inflate": flags.inflate or "sum"}
    options |= {name: number(flags, name) for name in ("patch_size", "channels")}
    return configs.call(load_backbone, options, "--backbone", flags.backbone, flags.model or None)


def for_images(backbone: Backbone, source: Source) -> Backbone:
    """The backbone, normalizing by the images' own mean and std where its weights do not say how, or are of images of
    another type. Prints what was found.

    Raises: ConfigError for images of other channels, or that cannot be measured.
    """
    image = check_channels(backbone, source)
    if backbone.mean and (backbone.facts.get("method") or str(image.dtype) == backbone.dtype):
        return backbone
    found = configs.call(statistics, {}, "--data", source)
    found.pop("channels")
    print(f"{source.name}: normalized by its own " + ", ".join(f"{key} {value}" for key, value in found.items()))
    return dataclasses.replace(backbone, **found)


def check_channels(backbone: Backbone, source: Source) -> Num[np.ndarray, "height width channels"]:
    """The first image that can be read. Raises: ConfigError if the backbone is for images of other channels."""
    image, channels = first_image(source), backbone.facts["channels"]
    if image.shape[-1] != channels:
        raise configs.ConfigError(
            f"the weights are for images of {channels} channels, and those of {source.name} have {image.shape[-1]}; "
            f"give --channels={image.shape[-1]}, and --inflate={'|'.join(INFLATIONS)} as you like"
        )
    return image


def how_to_read(backbone: Backbone) -> dict[str, Any]:
    """Options of `opening.open_data`: images are read as those that the backbone was trained on."""
    facts = backbone.facts
    bands: Sequence[int] = facts.get("bands", ())
    return {
        "channels": facts.get("channels", 3),
        "bands": tuple(bands),
        "pages": facts.get("pages", ""),
        "window": facts.get("window", 0),
    }


def image_size(text: str, backbone: Backbone) -> tuple[int, int] | None:
    """(height, width) of --image_size; if not given, the backbone's own, or None if that is unknown.

    Raises: ConfigError for what is not SIDE or HEIGHTxWIDTH.
    """
    if not text:
        own = getattr(backbone.model, "image_size", None)  # a ViT has one, as its positions are for one size
        return backbone.image_size or ((own, own) if isinstance(own, int) else own)
    return size_of(text)


def size_of(text: str) -> tuple[int, int]:
    """(height, width) of --image_size. Raises: ConfigError for what is not SIDE or HEIGHTxWIDTH."""
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise configs.ConfigError(f"--image_size must be SIDE or HEIGHTxWIDTH in pixels, such as 224, got {text!r}")
    return int(sides[0]), int(sides[-1])


def require(flags: Any, *names: str) -> None:
    """Raises: ConfigError for the first of these flags that is not given."""
    for name in names:
        if not getattr(flags, name):
            raise configs.ConfigError(f"--{name} is missing; see --help")


def number(flags: Any, name: str) -> int | None:
    """The flag's number, or None if it is not given. Raises: ConfigError unless it is a whole number, 0 or above."""
    text = getattr(flags, name)
    if text and not text.isdecimal():
        raise configs.ConfigError(f"--{name} must be an integer of at least 0, got {text!r}")
    return int(text) if text else None


def floats(flags: Any, name: str) -> tuple[float, ...]:
    """The flag's numbers, separated by commas. Raises: ConfigError for what is no number."""
    try:
        return tuple(float(part) for part in getattr(flags, name).split(","))
    except ValueError as error:
        raise configs.ConfigError(
            f"--{name} must be numbers separated by commas, such as 0.001,0.01, got {getattr(flags, name)!r}"
        ) from error


def print_left_out(source: Source, names: Sequence[str], windows: str) -> None:
    """Prints how many images could not be decoded, if any. A warning has named each before."""
    image_of = None if windows == "all" else source.image_of
    total = len(source) if image_of is None else len(np.unique(image_of))
    if count := total - len(names):
        print(f"left out {count:,} of {total:,} images that cannot be decoded; each is named above")

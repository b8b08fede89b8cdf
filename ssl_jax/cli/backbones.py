"""Flags that several commands share: which backbone, and which image size."""

from collections.abc import Sequence
from typing import Any

from ssl_jax import compiled
from ssl_jax import config as configs
from ssl_jax.data.sources import Source
from ssl_jax.weights import Backbone, load_backbone

FLAGS = {
    "workdir": "of a finished run of ssl_jax train",
    "backbone": "a file of weights (.safetensors) in place of --workdir",
    "model": "the architecture of --backbone, where its file does not say",
}
DATA = "a folder of images, a .npy or .npz file with images, or the name of a TFDS data set"
IMAGE_SIZE = "pixels that images are read at, SIDE or HEIGHTxWIDTH; as the backbone was trained if not given"


def check(flags: Any) -> None:
    """Raises: ConfigError unless exactly one of --workdir and --backbone is given, and for --model with --workdir."""
    if bool(flags.workdir) == bool(flags.backbone):
        raise configs.ConfigError("give one of --workdir, of a run of ssl_jax train, and --backbone, a file of weights")
    if flags.workdir and flags.model:
        raise configs.ConfigError(f"--model={flags.model} is for --backbone; a run says which architecture it has")


def load(flags: Any) -> Backbone:
    """The backbone that --workdir or --backbone names. Raises: ConfigError as `check`, and if it cannot be loaded."""
    compiled.keep()
    check(flags)
    where = "--workdir" if flags.workdir else "--backbone"
    return configs.call(load_backbone, {}, where, flags.workdir or flags.backbone, flags.model or None)


def image_size(text: str, backbone: Backbone) -> tuple[int, int] | None:
    """(height, width) of --image_size; if not given, the backbone's own, or None if that is unknown.

    Raises: ConfigError for what is not SIDE or HEIGHTxWIDTH.
    """
    if not text:
        own = getattr(backbone.model, "image_size", None)  # a ViT has one, as its positions are for one size
        return backbone.image_size or ((own, own) if isinstance(own, int) else own)
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
        raise configs.ConfigError(f"--{name} must be a whole number, got {text!r}")
    return int(text) if text else None


def floats(flags: Any, name: str) -> tuple[float, ...]:
    """The flag's numbers, separated by commas. Raises: ConfigError for what is no number."""
    try:
        return tuple(float(part) for part in getattr(flags, name).split(","))
    except ValueError as error:
        raise configs.ConfigError(f"--{name} must be numbers with commas, got {getattr(flags, name)!r}") from error


def print_left_out(source: Source, names: Sequence[str]) -> None:
    """Prints how many images could not be decoded, if any. A warning has named each before."""
    if count := len(source) - len(names):
        print(f"left out, as they cannot be decoded: {count:,} of {len(source):,} images, named above")

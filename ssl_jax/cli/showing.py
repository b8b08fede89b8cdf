"""Flags of commands that write pages with images of any number of bands: which bands are shown, stretched how."""

from collections.abc import Callable
from typing import Any

from ssl_jax import config as configs
from ssl_jax.report import display

FLAGS = {
    "bands": "bands of the images that are shown: one, or R,G,B for red, green and blue, from 0; default: the first",
    "stretch": (
        "LOW,HIGH percentiles of each band that are shown as black and white; default: 1,99, and photos as they are"
    ),
}


def options(flags: Any, channels: int | None = None) -> dict[str, Any]:
    """`bands` and `stretch` of the pages.

    channels: of the images; None if they are checked later.
    Raises: ConfigError for what is no number, and for what images of so many channels do not have.
    """
    bands, stretch = _numbers(flags, "bands", int), _numbers(flags, "stretch", float) or None
    if channels is not None:
        configs.call(display.check, {}, "--bands, --stretch", channels, bands, stretch)
    return {"bands": bands, "stretch": stretch}


def _numbers(flags: Any, name: str, kind: Callable[[str], Any]) -> tuple[Any, ...]:
    text = getattr(flags, name)
    try:
        return tuple(kind(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise configs.ConfigError(f"--{name} must be numbers separated by commas, got {text!r}") from error

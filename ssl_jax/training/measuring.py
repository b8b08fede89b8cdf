"""Completes a config with what it leaves to be found in the images."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ssl_jax import config as configs
from ssl_jax import dist
from ssl_jax.config import Config
from ssl_jax.config.schema import DataConfig
from ssl_jax.data.formats import UndecodableImage
from ssl_jax.data.pipeline import ImagesError
from ssl_jax.data.sources import Source
from ssl_jax.data.statistics import statistics
from ssl_jax.data.window_source import Windows
from ssl_jax.training import reading
from ssl_jax.weights import Backbone

FOUND = ("channels", "dtype", "value_range", "mean", "std")  # keys of config.data


def measured(
    config: ConfigDict,
    source: Source | None = None,
    saved: ConfigDict | None = None,
    begin: Callable[[Config], Backbone | None] = lambda config: None,
) -> ConfigDict:
    """The config, with channels, type, range of values, mean and deviation of the images where it leaves them open.

    Then its views follow the images: hue is of red, green and blue, and channel_mix takes its place for other channels.

    Args:
      source: images that a script gives; None: those of config.data. Where their type or channels are not those of the
        config, the config's mean and std are of other images, and all is measured.
      saved: the config of the run that is gone on with. What is left open is taken from it, and nothing is measured.
      begin: the weights that a run with this config begins with, None without any. Their range of values, mean and
        deviation are taken in place of measured ones where all that the config says of the images is as in theirs: so
        the features are those of the weights.
    Raises: ConfigError for images that cannot be measured; ImagesError if none can be read.
    """
    return measured_with_images(config, source, saved, begin)[0]


def measured_with_images(
    config: ConfigDict,
    source: Source | None,
    saved: ConfigDict | None,
    begin: Callable[[Config], Backbone | None] = lambda config: None,
) -> tuple[ConfigDict, Source | None]:
    """(the config of `measured`, the images as it says they are read).

    The images are `source`, or those of config.data if they were opened to be measured; None if nothing was opened.
    """
    if source is not None:
        config = _of_windows(config, source)
        image, data = first_image(source), config.data
        if data.channels not in (0, image.shape[-1]) or data.dtype not in ("", str(image.dtype)):
            config = copy.deepcopy(config)
            config.data.update(channels=0, dtype="", mean=(), std=())
    if not is_open(config.data):
        return config, source
    config = copy.deepcopy(config)  # keeps references: a model may take its mean and std from config.data
    if saved is not None:
        _fill(config, saved.data)
        return config, source
    given = source is not None
    if source is None:
        source = reading.whole_source(configs.parse(config))
        first_image(source)  # raises with a reason if none can be read
    left = [key for key in FOUND if is_unset(config.data, key)]
    replaced = _fill(config, _statistics(config.data, source))
    weights = begin(configs.parse(config))
    taken = {} if weights is None else _of_weights(weights, config.data, left)
    config.data.update(taken)
    if dist.is_first():
        shown = (*FOUND, *(["nodata"] if config.data.nodata else []))
        print(f"{source.name}: " + ", ".join(f"{key} {config.data[key]}" for key in shown), flush=True)
        if taken:
            print(f"{', '.join(taken)} are those of the weights to begin with, so that features are theirs", flush=True)
        if replaced:
            channels = config.data.channels
            instead = "channel_mix takes its place" if channels > 1 else "it is left out"
            print(f"views: hue is of red, green and blue, and the images have {channels} channels, so {instead}")
    return config, source if given else source.with_channels(config.data.channels)


def _of_windows(config: ConfigDict, source: Source) -> ConfigDict:
    """The config with the side of the windows that are given. Raises: ConfigError if it asks for others."""
    side = source.side if isinstance(source, Windows) else 0
    if config.data.window not in (0, side):
        raise configs.ConfigError(
            f"config.data.window={config.data.window}, but the images given are "
            + (f"windows of side {side}" if side else "no windows")
            + f"; give data.windows(images, {config.data.window}), or leave the key at 0"
        )
    if side == config.data.window:
        return config
    config = copy.deepcopy(config)
    config.data.window = side
    return config


def _fill(config: ConfigDict, found: Any) -> bool:
    """Sets what config.data leaves open, and what follows from it. Whether the views had a hue to replace."""
    config.data.update({key: found[key] for key in (*FOUND, "nodata") if is_unset(config.data, key)})
    return without_hue(config)


def _of_weights(weights: Backbone, data: ConfigDict, left: Sequence[str]) -> dict[str, Any]:
    """The range of values, mean and deviation of the weights' images, where they were `left` to be found.

    {} for images of another type or another number of channels, or if what the config gives is not what the weights
    have.
    """
    theirs = {"dtype": weights.dtype, "value_range": weights.value_range, "mean": weights.mean, "std": weights.std}
    known = len(weights.mean) == data.channels and weights.dtype == data.dtype
    given = [key for key in theirs if key not in left]
    if not known or any(configs.plain(data[key]) != theirs[key] for key in given):
        return {}
    return {key: theirs[key] for key in ("value_range", "mean", "std") if key in left and theirs[key]}


def _statistics(data: ConfigDict, source: Source) -> dict[str, Any]:
    """`statistics` as config.data wants them. Raises: ConfigError."""
    options = {"value_range": data.value_range, "percentiles": data.percentiles, "nodata": data.nodata}
    found = configs.call(statistics, options, "config.data", source)
    if data.channels not in (0, found["channels"]):
        raise configs.ConfigError(
            f"config.data.channels={data.channels}, but the images of {source.name} have {found['channels']} channels; "
            "set it to that, or to 0"
        )
    return found


def without_hue(config: ConfigDict) -> bool:
    """Replaces hue by channel_mix in the views of images that are not red, green and blue. Whether there was any."""
    found = False
    for view in config.augment.values() if config.data.channels != 3 else ():
        if hue := view.get("hue", 0.0):
            with view.unlocked():
                view.update({"hue": 0.0} | ({"channel_mix": hue} if config.data.channels > 1 else {}))
            found = True
    return found


def is_open(data: ConfigDict | DataConfig) -> bool:
    """Whether anything in config.data is left to be found in the images."""
    return any(is_unset(data, key) for key in FOUND)


def is_unset(data: ConfigDict | DataConfig, key: str) -> bool:
    unset = not getattr(data, key)
    return unset and not (key == "value_range" and data.dtype == "uint8")


def first_image(source: Source) -> np.ndarray:
    """The first image that can be read. Raises: ImagesError if there is none."""
    first: UndecodableImage | None = None
    for index in range(len(source)):
        try:
            return source[index]
        except UndecodableImage as error:
            first = first or error
    raise ImagesError(f"none of the {len(source)} images tried can be decoded, for example {first}")

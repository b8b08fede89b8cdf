"""Warns where views do not show what the images show, being shrunk or enlarged a lot, and where windows are slow."""

import logging
import math
from collections.abc import Sequence

import numpy as np

from ssl_jax.config import Config
from ssl_jax.data.augment import Augmentation, OwnAugmentation
from ssl_jax.data.crop import RandomCrop
from ssl_jax.data.formats import UndecodableImage
from ssl_jax.data.sources import Source, spread
from ssl_jax.data.window_source import Windows
from ssl_jax.training import reading

LOOKED_AT = 16  # images
SHRUNK, ENLARGED = 4.0, 2.0  # times, above which there is a warning


def warn(config: Config, source: Source, augmentations: Sequence[Augmentation | OwnAugmentation]) -> None:
    """Logs what the sizes of some images mean for the config. `source`: of the run."""
    if isinstance(source, Windows) and source.decoded_bytes > source.memory_bytes:
        logging.warning(
            "%s: images whose format gives no windows, such as JPEG, take %.1f GB decoded, and %.1f GB of them are "
            "kept: most windows will decode a whole image; save them as tiled TIFF, npy or zarr",
            source.name, source.decoded_bytes / 1e9, source.memory_bytes / 1e9,
        )  # fmt: skip
    data, crops = config.data, [augmentation.crop for augmentation in augmentations]
    sizes = _sizes(source)
    if not sizes:
        return
    height, width = np.median(sizes, axis=0).tolist()
    what = f"{source.name}: its images of about {height:.0f} x {width:.0f} pixels"
    in_memory = reading.keeps_in_memory(config, len(source), windows=source.random)
    remedy = ", or raise config.data.image_size" if in_memory else ""
    crop = max(crops, key=lambda crop: math.prod(crop.size))
    size = data.image_size if in_memory else crop.size
    shrunk = min(height / size[0], width / size[1]) if in_memory else 1 / _enlarged(crop, height, width)
    if shrunk > SHRUNK:
        logging.warning(
            "%s are shrunk %.3g times to %d x %d%s, so details of fewer pixels than that are lost; "
            "config.data.window=%d trains on windows of them%s",
            what, shrunk, *size, " in memory" if in_memory else "", max(size), remedy,
        )  # fmt: skip
    if in_memory:
        height, width = min(height, size[0]), min(width, size[1])
    enlarged, crop = min(((_enlarged(crop, height, width), crop) for crop in crops), key=lambda pair: pair[0])
    if enlarged > ENLARGED:
        logging.warning(
            "%s are enlarged at least %.3g times to views of %d x %d, which show no more for it; "
            "lower config.augment's size%s",
            what, enlarged, *crop.size, remedy,
        )  # fmt: skip


def _sizes(source: Source) -> list[tuple[int, int]]:
    """(height, width) of some images at equal distances that can be opened."""
    found: list[tuple[int, int]] = []
    for index in spread(len(source), LOOKED_AT):
        try:
            with source.open(int(index)) as image:
                found.append(image.shape[:2])
        except UndecodableImage:  # named when it is read for a batch
            continue
    return found


def _enlarged(crop: RandomCrop, height: float, width: float) -> float:
    """How many times the largest crop of an image is enlarged, in each direction; below 1 it is shrunk."""
    if crop.shorter_side:
        return crop.shorter_side / min(height, width)
    return math.sqrt(math.prod(crop.size) / (crop.area[1] * height * width))

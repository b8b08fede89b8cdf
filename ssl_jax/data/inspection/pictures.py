"""Small versions of images of any type and number of channels: to be compared, and to be looked at."""

from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from jaxtyping import Float32, Float64, Num, UInt8
from tqdm import tqdm

from ssl_jax.data import crop
from ssl_jax.data.formats import UndecodableImage
from ssl_jax.data.sources import Source
from ssl_jax.data.threads import in_order

SIDE = 96  # of a picture, in pixels


def read(
    source: Source, indices: Iterable[int], threads: int = 8
) -> dict[int, Num[np.ndarray, "height width channels"]]:
    """Index -> the image, as `shrink` makes it small. One that cannot be read is left out."""

    def picture(index: int) -> Num[np.ndarray, "height width channels"] | None:
        try:
            return shrink(source.read(index)[0], source.nodata)
        except UndecodableImage:
            return None

    wanted = sorted(set(indices))
    with ThreadPoolExecutor(threads, thread_name_prefix="pictures") as pool:
        made = in_order(pool, picture, wanted, 2 * threads)
        made = tqdm(made, f"pictures of {source.name}", total=len(wanted), unit=" images", delay=1)
        return {index: found for index, found in made if found is not None}


def shrink(
    image: Num[np.ndarray, "height width channels"], missing: Collection[float] = ()
) -> Num[np.ndarray, "new_height new_width channels"]:
    """The image, of the same type, by area averages: its longer side is at most SIDE.

    What is not finite, and the values `missing`, are filled in with the mean of the others in their channel, or with 0
    where there is no other: an average with NaN is NaN.
    """
    if missing or not np.isfinite(image).all():
        image = _filled(image, missing)
    return crop.shrink(image[None], SIDE)[0].copy()  # a view would keep the whole image


def shown_bands(channels: int) -> list[int]:
    """The bands that are shown where none are named: the first three as red, green and blue, or the first of fewer."""
    return [0, 1, 2] if channels >= 3 else [0]


def displayable(
    picture: Num[np.ndarray, "height width channels"], low: Sequence[float], high: Sequence[float], bands: Sequence[int]
) -> UInt8[np.ndarray, "height width shown"]:
    """The picture as a screen shows it: gray, or red, green and blue.

    Args:
      low, high: of each channel: what is shown as 0 and as 255. 8-bit images of up to 4 channels are shown as they are.
      bands: one channel, or three for red, green and blue; (): the first three, or the first of fewer.
    """
    chosen = list(bands) or shown_bands(picture.shape[2])
    shown = picture[..., chosen]
    if picture.dtype == np.uint8 and picture.shape[2] <= 4:
        return np.ascontiguousarray(shown)
    return stretched(shown, *(np.nan_to_num(np.asarray(ends, np.float64)[chosen]) for ends in (low, high)))


def stretched(
    shown: Num[np.ndarray, "*images bands"], low: Float64[np.ndarray, " bands"], high: Float64[np.ndarray, " bands"]
) -> UInt8[np.ndarray, "*images bands"]:
    """Each band, with `low` as 0 and `high` as 255."""
    span = np.where(high > low, high - low, 1.0)
    return (255 * np.clip((shown - low) / span, 0, 1)).round().astype(np.uint8)


def resized(channel: Num[np.ndarray, "height width"], side: int) -> Float32[np.ndarray, "side side"]:
    """One channel, resized to a square by area averages."""
    return cv2.resize(np.ascontiguousarray(channel, np.float32), (side, side), interpolation=cv2.INTER_AREA)


def _filled(image: np.ndarray, missing: Collection[float]) -> np.ndarray:
    known = np.isfinite(image) & ~np.isin(image, np.asarray([*missing], image.dtype))
    count = np.maximum(known.sum(axis=(0, 1)), 1)
    mean = np.sum(image, axis=(0, 1), where=known, dtype=np.float64) / count
    return np.where(known, image, mean.astype(image.dtype))

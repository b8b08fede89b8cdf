"""Antialiased resizing on the host, as Pillow and torchvision do it. data/resample.py: on the device.

A sparse matrix for the rows and one for the columns. For uint8, Pillow takes three times as long. All sums of uint8 are
exact, so every machine gives the same pixels.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

import functools
from collections.abc import Callable
from typing import cast

import cv2
import numpy as np
from jaxtyping import Float, Num, Shaped
from scipy import sparse

# Weights of uint8 pixels are multiples of 2^-15. A sum of them times 255 then fits in the 24 bits of a float32.
WEIGHT_STEPS = 2**15
OPENCV_CHANNELS = (1, 3, 4)  # that OpenCV transposes and enlarges at once
CACHED = 2048  # matrices, of some 10 kB each

Kernel = Callable[[Float[np.ndarray, "..."]], Float[np.ndarray, "..."]]


def _triangle(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _cubic(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Keys' kernel with a = -0.5."""
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1.0, ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


FILTERS: dict[str, tuple[Kernel, float]] = {"bilinear": (_triangle, 1.0), "bicubic": (_cubic, 2.0)}  # kernel, support


def resample(
    image: Num[np.ndarray, "height width channels"], size: tuple[int, int], interpolation: str
) -> Num[np.ndarray, "new_height new_width channels"]:
    """Resizes to (height, width), antialiased.

    uint8 is rounded between rows and columns, too. Other types are resized in float64 and rounded once.

    Args:
      interpolation: a key of `FILTERS`.
    """
    size = (size[0], size[1])
    if image.shape[:2] == size:
        return image
    if image.dtype != np.uint8:
        resized = _resized(image, size, interpolation, np.dtype(np.float64))
        if image.dtype.kind == "f":
            return resized.astype(image.dtype)
        ends = np.iinfo(image.dtype)  # the cubic kernel overshoots
        return np.clip(np.rint(resized), ends.min, ends.max).astype(image.dtype)
    if interpolation != "bilinear" or image.shape[2] not in OPENCV_CHANNELS:
        return _resized(image, size, interpolation, np.dtype(np.float32))
    # To enlarge, no widened kernel is needed. OpenCV is then three times as fast, and exact in integers.
    shrunk = (min(size[0], image.shape[0]), min(size[1], image.shape[1]))
    image = _resized(image, shrunk, interpolation, np.dtype(np.float32))
    if shrunk == size:
        return image
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR_EXACT).reshape(*size, -1)


def _resized(image: np.ndarray, size: tuple[int, int], interpolation: str, work: np.dtype) -> np.ndarray:
    """work: the type that is added up in. The result is of it, or uint8 if the image is."""
    height, width = image.shape[:2]
    rows_first = size[0] < height and size[0] * width <= height * size[1]  # then fewer pixels are left for the columns
    for rows in (rows_first, not rows_first):
        if rows and height != size[0]:
            image = _resized_rows(image, size[0], interpolation, work)
        elif not rows and width != size[1]:
            image = _transposed(_resized_rows(_transposed(image), size[1], interpolation, work))
    return image


def _resized_rows(image: np.ndarray, new: int, interpolation: str, work: np.dtype) -> np.ndarray:
    height, width, channels = image.shape
    weights = _weights(height, new, interpolation, work)
    rows = cast(np.ndarray, weights @ image.astype(work, order="C").reshape(height, width * channels))
    if image.dtype == np.uint8:
        # convertScaleAbs rounds, and clips above. It would turn what is below 0 positive.
        rows = cv2.convertScaleAbs(rows if interpolation == "bilinear" else np.maximum(rows, 0.0, out=rows))
    return rows.reshape(new, width, channels)


def _transposed(image: Shaped[np.ndarray, "height width channels"]) -> Shaped[np.ndarray, "width height channels"]:
    if image.dtype == np.uint8 and image.shape[2] in OPENCV_CHANNELS:
        return cv2.transpose(image).reshape(image.shape[1], image.shape[0], -1)
    return np.ascontiguousarray(image.swapaxes(0, 1))


@functools.lru_cache(maxsize=CACHED)
def _weights(old: int, new: int, interpolation: str, work: np.dtype) -> sparse.csr_array:
    """[new, old], each row with the weights of the old pixels near a new one.

    To shrink, the kernel is widened to the distance of the new pixels, as in Pillow. float32: in multiples of
    1 / WEIGHT_STEPS.
    """
    kernel, support = FILTERS[interpolation]
    scale = old / new
    widened = max(scale, 1.0)
    center = (np.arange(new) + 0.5) * scale
    first = np.maximum((center - support * widened + 0.5).astype(np.int32), 0)
    end = np.minimum((center + support * widened + 0.5).astype(np.int32), old)
    pixel = first[:, None] + np.arange((end - first).max(), dtype=np.int32)
    inside = pixel < end[:, None]
    weights = np.where(inside, kernel((pixel + 0.5 - center[:, None]) / widened), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    if work == np.float32:
        weights = np.rint(weights * WEIGHT_STEPS)
        largest = np.argmax(weights, axis=1)
        weights[np.arange(new), largest] += WEIGHT_STEPS - weights.sum(axis=1)
        weights /= WEIGHT_STEPS
    kept = weights != 0  # 0 times NaN would be NaN
    starts = np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(np.int32)
    return sparse.csr_array((weights[kept].astype(work), pixel[kept], starts), shape=(new, old))

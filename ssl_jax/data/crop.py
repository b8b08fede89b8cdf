"""Regions of an image, resized, on the host."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float32, Num

from ssl_jax.data.host_resample import resample

CROP_TRIES = 10  # torchvision's
OPENCV_CHANNELS = 4  # OpenCV resizes no more at once


@dataclass(frozen=True)
class RandomCrop:
    """A random region of an image, resized: torchvision's RandomResizedCrop.

    With `shorter_side` it is a window of the resized image instead: torchvision's Resize, Pad and RandomCrop.

    Attributes:
      size: (height, width) of the result, in pixels.
      area: (low, high) area of the region, as a share of the image's area; uniform.
      aspect: (low, high) width / height of the region; its logarithm is uniform.
      interpolation: a key of `host_resample.FILTERS`, antialiased.
      shorter_side: the image is resized until its shorter side has this many pixels, then a window of `size` is taken.
        0: a region of random area and aspect.
      padding: black pixels on each side of the resized image; the window may include them.
      shift: the region is that of the first view, moved down and to the right by up to this share of its sides.
    """

    size: tuple[int, int]
    area: tuple[float, float]
    aspect: tuple[float, float]
    interpolation: str = "bilinear"
    shorter_side: int = 0
    padding: int = 0
    shift: float = 0.0

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of an image after its shorter side has become `shorter_side`."""
        height, width = (int(self.shorter_side * side / min(height, width)) for side in (height, width))
        return height, width

    def room(self, height: int, width: int) -> tuple[int, int]:
        """The number of places (down, across) for the window in an image of height x width pixels, after padding."""
        down, across = (
            side + 2 * self.padding - window + 1 for side, window in zip((height, width), self.size, strict=True)
        )
        return down, across

    def box(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """(top, left, height, width) of a random region in an image of height x width pixels.

        Ten regions are drawn, and the first that lies within the image is taken. If none does, see
        `_largest_centered_box`.
        """
        low, high = math.log(self.aspect[0]), math.log(self.aspect[1])
        # One number at a time: in most images the first or second try fits, and NumPy takes longer for ten at once.
        for area, aspect, top, left in rng.random((CROP_TRIES, 4)).tolist():
            area = height * width * (self.area[0] + (self.area[1] - self.area[0]) * area)
            aspect = math.exp(low + (high - low) * aspect)
            h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if 0 < h <= height and 0 < w <= width:
                return int(top * (height - h + 1)), int(left * (width - w + 1)), h, w
        return self._largest_centered_box(height, width)

    def moved(
        self, box: tuple[int, int, int, int], height: int, width: int, rng: np.random.Generator
    ) -> tuple[int, int, int, int]:
        """The box of the first view, moved at random, within an image of height x width pixels."""
        top, left, h, w = box
        down, right = (self.shift * rng.random(2)).tolist()
        return min(top + round(down * h), height - h), min(left + round(right * w), width - w), h, w

    def shrinks(self, height: int, width: int, rng: np.random.Generator) -> float:
        """How many times the region that `rng` draws of an image is shrunk, in the direction where that is least."""
        if self.shorter_side:
            return min(height, width) / self.shorter_side
        _, _, h, w = self.box(height, width, rng)
        return min(h / self.size[0], w / self.size[1])

    def _largest_centered_box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """The whole image. If its aspect is outside of `aspect`, its longer side is cut until the aspect is allowed."""
        h = min(height, max(round(width / self.aspect[0]), 1))
        w = min(width, max(round(height * self.aspect[1]), 1))
        return (height - h) // 2, (width - w) // 2, h, w


def random_crop(
    image: Num[np.ndarray, "height width channels"],
    crop: RandomCrop,
    rng: np.random.Generator,
    black: Sequence[float] = (0.0,),
    mover: np.random.Generator | None = None,
) -> tuple[Num[np.ndarray, "crop_height crop_width channels"], Float32[np.ndarray, "4"]]:
    """(the crop; its top, left, height and width as shares of the image's sides). Padding is outside of 0..1.

    black: the value of the padding, of each channel or one for all.
    mover: of a crop with `shift`, whose `rng` is that of the first view.
    """
    height, width = image.shape[:2]
    if crop.shorter_side:
        height, width = crop.resized(height, width)
        image = resample(image, (height, width), crop.interpolation)
        top, left = (int(draw * room) for draw, room in zip(rng.random(2), crop.room(height, width), strict=True))
        image = _padded(image, crop.padding, black)
        h, w = crop.size
        shown = image[top : top + h, left : left + w]
        top, left = top - crop.padding, left - crop.padding
    else:
        box = crop.box(height, width, rng)
        top, left, h, w = box if mover is None else crop.moved(box, height, width, mover)
        shown = resample(image[top : top + h, left : left + w], crop.size, crop.interpolation)
    return shown, np.array([top / height, left / width, h / height, w / width], np.float32)


def _padded(image: np.ndarray, padding: int, black: Sequence[float]) -> np.ndarray:
    if not padding:
        return image
    height, width, channels = image.shape
    padded = np.empty((height + 2 * padding, width + 2 * padding, channels), image.dtype)
    padded[:] = np.asarray(black, image.dtype)
    padded[padding : padding + height, padding : padding + width] = image
    return padded


def center_crop(
    image: Num[np.ndarray, "height width channels"], size: tuple[int, int], share: float = 1.0
) -> Num[np.ndarray, "crop_height crop_width channels"]:
    """The largest centered region of `size`'s aspect, its sides multiplied by `share`, resized to `size`.

    size: (height, width).
    """
    height, width = image.shape[:2]
    scale = share * min(height / size[0], width / size[1])
    h, w = (max(round(scale * side), 1) for side in size)
    top, left = (height - h) // 2, (width - w) // 2
    return resize(image[top : top + h, left : left + w], size)


def shrink(
    images: Num[np.ndarray, "n height width channels"], side: int
) -> Num[np.ndarray, "n small_height small_width channels"]:
    """Images, shrunk until the larger side is at most `side`, by area averages."""
    height, width = images.shape[1:3]
    if max(height, width) <= side:
        return images
    scale = side / max(height, width)
    size = (max(round(height * scale), 1), max(round(width * scale), 1))
    return np.stack([resize(image, size) for image in images])


def resize(
    image: Num[np.ndarray, "height width channels"], size: tuple[int, int]
) -> Num[np.ndarray, "new_height new_width channels"]:
    """Resizes to (height, width), antialiased. Shrinking averages over each new pixel's area; enlarging is bilinear."""
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    if image.shape[2] > OPENCV_CHANNELS:
        parts = np.split(image, range(OPENCV_CHANNELS, image.shape[2], OPENCV_CHANNELS), axis=2)
        return np.concatenate([resize(np.ascontiguousarray(part), size) for part in parts], axis=2)
    shrinks = image.shape[0] >= height and image.shape[1] >= width
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return resized.reshape(height, width, -1)  # OpenCV drops the axis of a single channel

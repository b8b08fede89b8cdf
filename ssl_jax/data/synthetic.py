"""Synthetic images of five bands and 16 bits, as a camera might take them of images in color.

No camera took them. They are for trying what holds for measured images of more bands and bits: their values are a known
function of known scenes, so that what a program reports of them can be checked.
"""

import zlib

import numpy as np
from jaxtyping import Float, UInt8, UInt16

from ssl_jax.data.sources import SameImages, Source, digest_of

PREFIX = "synthetic_"  # of names of data sets
# Of linear red, green and blue in each band: blue, green, yellow, red, near infrared. Each row has the sum 1, so white
# stays white. Three colors make five bands, so without noise their rank is three.
MIXING = np.array([[0.0, 0.1, 0.9], [0.1, 0.8, 0.1], [0.45, 0.5, 0.05], [0.9, 0.1, 0.0], [0.6, 0.3, 0.1]])
BANDS = len(MIXING)
FULL_WELL = 10_000  # electrons, of white in the center at the longest exposure
SHORTEST = 0.25  # of the longest exposure
READ_NOISE = 5.0  # electrons, standard deviation
GAIN, OFFSET = 6.0, 200.0  # numbers for an electron, and for none
FOCAL_LENGTH = 1.5  # over half of the image's diagonal: corners get 0.48 of the center's light


class Synthetic(SameImages):
    """The images of a source in color, as a synthetic camera takes them: uint16 [height, width, 5].

    light = MIXING @ (linear red, green, blue), each in 0..1. electrons: Poisson(exposure * FULL_WELL * vignetting *
    light) + normal(0, READ_NOISE). value = round(GAIN * electrons + OFFSET), clipped to 16 bits. Vignetting is the
    cos^4 law. The exposure is drawn for each image, log-uniform in SHORTEST .. 1.

    An image's exposure and noise depend on its name and `seed` alone: they are the same in each epoch and in each part
    of the set.

    Args:
      source: of images in color, uint8 [height, width, 3], in sRGB.
    """

    def __init__(self, source: Source, seed: int = 0):
        super().__init__(source)
        self.name, self._seed = PREFIX + source.name, seed

    def read(self, index: int) -> tuple[UInt16[np.ndarray, "height width bands"], int]:
        image, label = self._source.read(index)
        rng = np.random.default_rng([self._seed, zlib.crc32(self.image_name(index).encode())])
        return take(image, rng), label

    def digest(self) -> str:
        return digest_of([PREFIX, self._source.digest(), str(self._seed)])


def take(
    image: UInt8[np.ndarray, "height width 3"], rng: np.random.Generator
) -> UInt16[np.ndarray, "height width bands"]:
    """One exposure of an image, see `Synthetic`. Raises: ValueError for another shape or type."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"the scene must be uint8 [height, width, 3], got {image.dtype} {list(image.shape)}")
    exposure = SHORTEST ** rng.random()
    light = linear(image) @ MIXING.T * vignetting(image.shape[0], image.shape[1])[..., None]
    photons = np.asarray(rng.poisson(exposure * FULL_WELL * light), np.float64)
    electrons = photons + rng.normal(0, READ_NOISE, light.shape)
    return np.clip(np.rint(GAIN * electrons + OFFSET), 0, 2**16 - 1).astype(np.uint16)


def linear(image: UInt8[np.ndarray, "height width channels"]) -> Float[np.ndarray, "height width channels"]:
    """Linear light in 0..1 of sRGB. Source: IEC 61966-2-1."""
    unit = image / 255
    return np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)


def vignetting(height: int, width: int) -> Float[np.ndarray, "height width"]:
    """The share of the center's light at each pixel: cos^4 of the angle to the axis."""
    rows, columns = (np.arange(side) - (side - 1) / 2 for side in (height, width))
    squared = (rows[:, None] ** 2 + columns**2) / (FOCAL_LENGTH * np.hypot(height, width) / 2) ** 2
    return 1 / (1 + squared) ** 2

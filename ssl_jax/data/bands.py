"""Images whose bands are files of their own, and some bands of images."""

from collections.abc import Sequence

import numpy as np

from ssl_jax.data.formats import UndecodableImage, read_image
from ssl_jax.data.normalization import DTYPES
from ssl_jax.data.sources import SameImages, Source, digest_of
from ssl_jax.paths import AnyPath


def decode_bands(files: Sequence[tuple[AnyPath, str]], name: str) -> np.ndarray:
    """The image whose bands are gray files, in the given order.

    Of a coarser band each pixel is repeated, where the largest band has a whole number of pixels for it, as
    Sentinel-2's bands of 10, 20 and 60 m. The type is the smallest that holds the values of all bands.

    Args:
      files: (path, its name for the error) of each band.
    Raises: UndecodableImage, also for bands whose sizes do not fit, or that no type of images holds together.
    """
    bands = [read_image(path, file, 1) for path, file in files]
    height, width = (max(band.shape[axis] for band in bands) for axis in (0, 1))
    fitted: list[np.ndarray] = []
    for band, (_, file) in zip(bands, files, strict=True):
        down, below = divmod(height, band.shape[0])
        across, beside = divmod(width, band.shape[1])
        if below or beside or down != across:
            raise UndecodableImage(
                name,
                f"its band {file} has {band.shape[1]} x {band.shape[0]} pixels and the largest {width} x {height}, "
                "which is no whole multiple; resample it",
            )
        fitted.append(band if down == 1 else band.repeat(down, axis=0).repeat(down, axis=1))
    if (common := np.result_type(*fitted)).name not in DTYPES:
        found = ", ".join(sorted({band.dtype.name for band in fitted}))
        raise UndecodableImage(name, f"its bands are {found}; save them with one type")
    return np.concatenate(fitted, axis=-1, dtype=common)


class Bands(SameImages):
    """Some bands of the images of another source, in the order of `bands`, indices from 0."""

    def __init__(self, source: Source, bands: Sequence[int]):
        super().__init__(source)
        self._bands = list(bands)

    def read(self, index: int):
        image, label = self._source.read(index)
        if max(self._bands) >= image.shape[-1]:
            raise UndecodableImage(
                self.image_name(index),
                f"it has {image.shape[-1]} bands, so there is no band {max(self._bands)}: bands are counted from 0",
            )
        return np.ascontiguousarray(image[..., self._bands]), label

    def digest(self):
        return digest_of([super().digest(), *map(str, self._bands)])

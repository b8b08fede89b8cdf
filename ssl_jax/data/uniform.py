"""Images of a source, all of one type and number of channels, with a value wherever there was no measurement."""

import numpy as np

from ssl_jax.data.formats import Reduce, UndecodableImage
from ssl_jax.data.normalization import Normalization
from ssl_jax.data.sources import SameImages, Source


class Uniform(SameImages):
    """The images of another source as `Normalization.conform` gives them. One that does not fit is undecodable."""

    def __init__(self, source: Source, normalization: Normalization):
        super().__init__(source)
        self.random, self._normalization = source.random, normalization

    def read(self, index: int):
        image, label = self._source.read(index)
        return self._conform(image, index), label

    def read_reduced(self, index: int, reduce: Reduce):
        image, label = self._source.read_reduced(index, reduce)
        return self._conform(image, index), label

    def read_random(self, index: int, rng: np.random.Generator):
        image, label = self._source.read_random(index, rng)
        return self._conform(image, index), label

    def encoded(self, index: int):
        return self._source.encoded(index)

    def in_memory(self, size: tuple[int, int]) -> np.ndarray | None:
        images = self._source.in_memory(size)
        try:
            return None if images is None else self._normalization.conform(images)
        except ValueError:
            return None  # whoever reads them one by one learns why

    def _conform(self, image: np.ndarray, index: int) -> np.ndarray:
        try:
            return self._normalization.conform(image)
        except ValueError as error:
            raise UndecodableImage(self.image_name(index), str(error)) from error

"""What sources of encoded images in large files have in common."""

import abc
import copy
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int32

from ssl_jax.data.formats import Reduce, check_channels, decode_image
from ssl_jax.data.sources import Source, digest_of
from ssl_jax.data.targets import Targets


class RecordSource(Source):
    """Encoded images, read one at a time.

    Args:
      name: for messages and reports.
      names: of the images.
      labels: indices into class_names, -1 for an image without one; None if there are none.
      class_names: one for each label.
      groups: what each image belongs to; None if that is not known.
      channels: 1 or 3, of the images as they are read.
      targets: of the images; None if there are none.
    Raises: ValueError if there are no images.
    """

    def __init__(
        self,
        name: str,
        names: Sequence[str],
        labels: Int32[np.ndarray, " images"] | None,
        class_names: tuple[str, ...],
        groups: np.ndarray | None,
        channels: int | None,
        targets: Targets | None = None,
    ):
        check_channels(channels)
        if not names:
            raise ValueError(f"{name} has no images, or none of one of its splits")
        self.name, self.class_names, self.groups, self.targets = name, class_names, groups, targets
        self._names, self._labels, self._channels = names, labels, channels

    @abc.abstractmethod
    def encoded(self, index: int) -> bytes:
        """The bytes of an image file, or of an array as `numpy.save` writes it. Raises: UndecodableImage."""

    @property
    def labels(self):
        return self._labels

    def __len__(self):
        return len(self._names)

    def read(self, index: int):
        return self.read_reduced(index)

    def read_reduced(self, index: int, reduce: Reduce | None = None):
        image = decode_image(self.encoded(index), self._channels, self._names[index], reduce=reduce)
        return image, self.label(index)

    def label(self, index: int) -> int:
        """-1 for an image without one."""
        return -1 if self._labels is None else int(self._labels[index])

    def with_channels(self, channels: int):
        found = copy.copy(self)
        found._channels = channels
        return found

    def image_name(self, index: int):
        return self._names[index]

    def digest(self):
        """Made from the names, sizes, labels and targets."""
        labels: Iterable[str] = () if self._labels is None else map(str, self._labels)
        targets = () if self.targets is None else (self.targets.digest(),)
        return digest_of([*self._names, *map(str, self.sizes()), *labels, *targets])

    @abc.abstractmethod
    def sizes(self) -> Sequence[int]:
        """Numbers of bytes that tell these images from others of the same names."""

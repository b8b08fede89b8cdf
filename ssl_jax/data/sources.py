"""What a source of images is, and images in memory.

Folders of files: data/folder_source.py. TFDS data sets: data/tfds_source.py. By name: data/opening.py.
"""

import abc
import hashlib
import itertools
import math
import os
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int, Int32, Integer, Num, Shaped

from ssl_jax.data.formats import OpenImage, Reduce
from ssl_jax.data.formats.stored import Stored, decoded
from ssl_jax.data.normalization import DTYPES
from ssl_jax.data.targets import Targets

DIGITS = 12  # hexadecimal digits of a digest
DIGESTED_TOGETHER = 1024  # images read at a time for it
DIGESTED_BYTES = 2**28  # of an array; takes about half a second


class Source(abc.ABC):
    """Images by index, decoded when asked for; safe to read from several threads.

    Attributes:
      name: for messages and reports.
      class_names: one for each label; () if the set has no labels.
      groups: what each image belongs to (patient, scene, camera), for `ssl_jax.data.split`; None if that is not known.
      targets: of each image what is to be predicted beside or in place of a class; None if there is nothing.
      nodata: the values that stand for missing pixels, as the files' metadata give them.
      image_of: of images that are windows of larger ones: which windows are of the same image; else None.
      random: whether `read_random` differs from `read`.
    """

    name: str
    class_names: tuple[str, ...] = ()
    groups: Shaped[np.ndarray, " images"] | None = None
    targets: Targets | None = None
    nodata: tuple[float, ...] = ()
    image_of: Int[np.ndarray, " images"] | None = None
    random: bool = False

    @property
    @abc.abstractmethod
    def labels(self) -> Int32[np.ndarray, " images"] | None:
        """Indices into class_names, -1 for an image without a label; None if the set has no labels."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def read(self, index: int) -> tuple[Num[np.ndarray, "height width channels"], int]:
        """(image, its label or -1). The image has a type of `DTYPES`. Raises: UndecodableImage."""

    def read_reduced(self, index: int, reduce: Reduce) -> tuple[Num[np.ndarray, "height width channels"], int]:
        """As `read`; of a JPEG the sides are divided by reduce(height, width), 1, 2, 4 or 8, at a part of the cost."""
        return self.read(index)

    def read_random(self, index: int, rng: np.random.Generator) -> tuple[Num[np.ndarray, "height width channels"], int]:
        """As `read`, for training: of an image that is a window of a larger one, a place near it that `rng` draws."""
        return self.read(index)

    def encoded(self, index: int) -> bytes | None:
        """The bytes that an image is decoded from; None where it is not decoded, or not from bytes of its own.

        Raises: UndecodableImage, OSError.
        """
        return None

    def in_memory(self, size: tuple[int, int]) -> Num[np.ndarray, "images height width channels"] | None:
        """All images, as `read` gives them, if they are one array in memory of `size`, (height, width); else None."""
        return None

    def open(self, index: int) -> OpenImage:
        """The image, for windows of it. Where windows cannot be read by themselves, it is read whole.

        Raises: UndecodableImage.
        """
        return OpenImage(decoded(self.read(index)[0]), self.image_name(index))

    def with_channels(self, channels: int) -> "Source":
        """These images read with so many channels, without opening them again; 1 and 3 convert photos. Images that are
        not converted are returned as they are."""
        return self

    def image_name(self, index: int) -> str:
        """What an image is called in tables: a file's path in its folder; its index if images have no names."""
        return str(index)

    def whole_name(self, index: int) -> str:
        """What the larger image is called that an image is a window of; of no window, its own name."""
        return self.image_name(index)

    def origin(self, index: int) -> str | None:
        """The file that an image is read from, in full, and its place there: the same for the same image of two
        sources. None for an image that has no file of its own."""
        return None

    def __getitem__(self, index: int) -> Num[np.ndarray, "height width channels"]:
        return self.read(index)[0]

    def digest(self) -> str:
        """12 hexadecimal digits that tell these images, in this order, from others. Where images have names, none is
        read for it."""
        return digest_of([self.name])


class ArraySource(Source):
    """Images in memory or in a memory-mapped file. From a file only the images that are asked for are read.

    Args:
      images: [images, height, width, channels], or without channels for gray ones, of a type of `DTYPES`.
      labels: -1 for an image without one; None if there are none.
      class_names: one for each label; "0", "1", ... if not given.
      groups: what each image belongs to, for `split`; None if there are none.
      targets: of each image; None if there are none.
    Raises: ValueError for another dtype or shape, and for labels, groups or targets that do not fit.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: Integer[np.ndarray, " images"] | None = None,
        class_names: Sequence[str] = (),
        name: str = "array",
        groups: Shaped[np.ndarray, " images"] | None = None,
        targets: Targets | None = None,
    ):
        if images.ndim not in (3, 4):
            raise ValueError(f"images must be [images, height, width, channels], got {list(images.shape)}")
        check_type(images)
        if groups is not None and groups.shape != (len(images),):
            raise ValueError(f"{len(images)} images need as many groups, got groups of shape {list(groups.shape)}")
        if targets is not None and len(targets.values) != len(images):
            raise ValueError(f"{len(images)} images need as many targets, got {len(targets.values)}")
        self._images, self.groups = images if images.ndim == 4 else images[..., None], groups
        self.targets = targets
        self._labels, self.name, self.class_names = None, name, tuple(class_names)
        if labels is not None:
            if labels.shape != (len(images),):
                raise ValueError(f"{len(images)} images need as many labels, got labels of shape {list(labels.shape)}")
            self._labels = labels.astype(np.int32)
            low, high = self._labels.min(initial=0), self._labels.max(initial=-1)
            self.class_names = self.class_names or tuple(str(k) for k in range(high + 1))
            if low < -1 or high >= len(self.class_names):
                raise ValueError(
                    f"labels are in {low}..{high}, but there are {len(self.class_names)} class names; "
                    "labels must be indices into class_names, or -1 for an image without a label"
                )

    @property
    def labels(self) -> Int32[np.ndarray, " images"] | None:
        return self._labels

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> tuple[np.ndarray, int]:
        return np.asarray(self._images[index]), -1 if self._labels is None else int(self._labels[index])

    def in_memory(self, size: tuple[int, int]) -> np.ndarray | None:
        images, own_way = self._images, type(self).read is not ArraySource.read  # of a subclass
        fits = images.shape[1:3] == size and not isinstance(images, np.memmap)
        return images if fits and not own_way else None

    def open(self, index: int) -> OpenImage:
        return open_array(self._images[index], self.image_name(index))

    def digest(self) -> str:
        """Made from the images and labels. Of more than DIGESTED_BYTES, some images at equal distances are taken."""
        shape, count = self._images.shape, len(self._images)
        size = max(math.prod(shape[1:]), 1)
        chosen = spread(count, DIGESTED_BYTES // size + 1)
        found = hashlib.sha256(f"{self.name} {shape} {self._images.dtype}".encode())
        for start in range(0, len(chosen), DIGESTED_TOGETHER):
            found.update(np.ascontiguousarray(self._images[chosen[start : start + DIGESTED_TOGETHER]]).data)
        if self._labels is not None:
            found.update(self._labels.data)
        if self.targets is not None:
            found.update(self.targets.digest().encode())
        return found.hexdigest()[:DIGITS]


class Subset(Source):
    """Some images of another source, in the order of `indices`."""

    def __init__(self, source: Source, indices: Integer[np.ndarray, " images"]):
        self._source, self._indices = source, np.asarray(indices)
        self.name, self.class_names = source.name, source.class_names
        self.groups = None if source.groups is None else source.groups[self._indices]
        self.image_of = None if source.image_of is None else source.image_of[self._indices]
        self.targets = None if source.targets is None else source.targets.of(self._indices)
        self.nodata, self.random = source.nodata, source.random

    @property
    def labels(self) -> Int32[np.ndarray, " images"] | None:
        labels = self._source.labels
        return None if labels is None else labels[self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, index: int) -> tuple[np.ndarray, int]:
        return self._source.read(int(self._indices[index]))

    def read_reduced(self, index: int, reduce: Reduce) -> tuple[np.ndarray, int]:
        return self._source.read_reduced(int(self._indices[index]), reduce)

    def read_random(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        return self._source.read_random(int(self._indices[index]), rng)

    def encoded(self, index: int) -> bytes | None:
        return self._source.encoded(int(self._indices[index]))

    def open(self, index: int) -> OpenImage:
        return self._source.open(int(self._indices[index]))

    def image_name(self, index: int) -> str:
        return self._source.image_name(int(self._indices[index]))

    def whole_name(self, index: int) -> str:
        return self._source.whole_name(int(self._indices[index]))

    def origin(self, index: int) -> str | None:
        return self._source.origin(int(self._indices[index]))

    def digest(self) -> str:
        return digest_of(itertools.chain([self._source.digest()], map(str, self._indices)))


class SameImages(Source):
    """The images of another source, one for one, which a subclass reads in its own way."""

    def __init__(self, source: Source):
        self._source = source
        self.name, self.class_names, self.groups = source.name, source.class_names, source.groups
        self.targets, self.image_of, self.nodata = source.targets, source.image_of, source.nodata

    @property
    def labels(self) -> Int32[np.ndarray, " images"] | None:
        return self._source.labels

    def __len__(self) -> int:
        return len(self._source)

    def image_name(self, index: int) -> str:
        return self._source.image_name(index)

    def whole_name(self, index: int) -> str:
        return self._source.whole_name(index)

    def origin(self, index: int) -> str | None:
        return self._source.origin(index)

    def digest(self) -> str:
        return self._source.digest()


def open_array(image: Num[np.ndarray, "height width channels"], name: str) -> OpenImage:
    """An array that is read by windows as it is: it may be mapped from a file."""

    def window(top: int, left: int, h: int, w: int) -> np.ndarray:
        return np.asarray(image[top : top + h, left : left + w])

    height, width, channels = image.shape
    return OpenImage(Stored((height, width, channels), image.dtype, window, windowed=True), name)


def check_type(images: np.ndarray) -> None:
    """Raises: ValueError unless the type of the images is one of `DTYPES`."""
    if str(images.dtype) not in DTYPES:
        raise ValueError(
            f"images must be of {', '.join(DTYPES)}, got {images.dtype}; use images.astype('float32'), or a type of "
            "fewer bits if it holds all values"
        )


def spread(count: int, most: int) -> Integer[np.ndarray, " chosen"]:
    """At most `most` of `count` indices, at equal distances, with the first and the last."""
    return np.unique(np.linspace(0, max(count - 1, 0), min(count, most)).astype(int))


def digest_of(names: Iterable[str]) -> str:
    found = hashlib.sha256()
    for name in names:
        found.update(os.fsencode(name) + b"\0")
    return found.hexdigest()[:DIGITS]

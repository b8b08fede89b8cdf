"""Images that a script gives: arrays, or any object with `__len__` and `__getitem__`; and `split`, which divides them.

train, test = data.split(data.arrays(images, labels, groups=patients), test_share=0.2, seed=0)
"""

# pyright: reportMissingTypeStubs=false

import functools
import hashlib
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Integer
from tqdm import tqdm

from ssl_jax.data.opening import divided
from ssl_jax.data.sources import DIGITS, ArraySource, Source, check_type, spread
from ssl_jax.data.targets import MULTILABEL, REGRESSION, make
from ssl_jax.data.window_source import Windows

DIGESTED_ITEMS = 16  # of an object, at equal distances
LABELS = ("labels", "targets")  # attributes of an object that hold all its labels


@runtime_checkable
class Items(Protocol):
    """What `pretrain` and `evaluate` take as images: item i is an image, or (image, label)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def arrays(
    images: Any,
    labels: Any = None,
    *,
    groups: Any = None,
    class_names: Sequence[str] = (),
    targets: Any = None,
    target_names: Sequence[str] = (),
    name: str = "arrays",
) -> Source:
    """Images of an array. If it is memory-mapped, only the images that are asked for are read.

    Args:
      images: uint8, uint16, int16 or float32 [images, height, width, channels], or without channels for gray ones.
      labels: [images] integers, indices into class_names; -1 for an image without one. Or [images, labels] of 1, 0 and
        NaN: whether an image has each of several labels, NaN where that is not known. None if there are none.
      groups: [images], what each image belongs to (patient, scene, camera). `split` never divides a group.
      class_names: one for each label; "0", "1", ... if not given.
      targets: [images] or [images, outputs], numbers that were measured of each image, NaN where that is not known.
        None if there are none.
      target_names: one for each output; "0", "1", ... if not given.
      name: for messages and reports.
    Raises: ValueError for another dtype or shape, and for labels, groups or targets that do not fit.
    """
    of_images, of_groups = (None if x is None else np.asarray(x) for x in (labels, groups))
    found = None
    if of_images is not None and of_images.ndim == 2:
        if targets is not None:
            raise ValueError("give labels [images, labels] or targets, not both: they are evaluated in different ways")
        found = make(of_images, class_names, MULTILABEL, "labels")
        of_images, class_names = None, ()
    elif targets is not None:
        found = make(targets, target_names, REGRESSION, "targets")
    return ArraySource(np.asanyarray(images), of_images, class_names, name, of_groups, found)


class ObjectSource(Source):
    """The images of any object with `__len__` and `__getitem__`. Several threads call `__getitem__`.

    Args:
      items: item i is an image, or (image, label). `numpy.asarray` must turn an image into an array [height, width,
        channels] or [height, width] of a type of `DTYPES`, as it does with arrays and Pillow's images. A label is an
        index into class_names, -1 for none. Labels come from the attribute `labels` or `targets` of `items`; without
        one, every item is read once.
      class_names: one for each label; "0", "1", ... if not given.
      name: for messages and reports; the name of the class of `items` if not given.
    Raises: ValueError for an empty object, and later, when read, for items that are no such images or labels.
    """

    def __init__(self, items: Items, class_names: Sequence[str] = (), name: str = ""):
        self.name, self._items = name or type(items).__name__, items
        if not len(items):
            raise ValueError(f"{self.name} is empty; give at least one image")
        self._labeled = isinstance(items[0], tuple)
        if (labels := self.labels) is not None:
            self.class_names = tuple(class_names) or tuple(map(str, range(int(labels.max(initial=-1)) + 1)))

    @functools.cached_property
    def labels(self) -> Integer[np.ndarray, " images"] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not self._labeled:
            return None
        for name in LABELS:
            found = getattr(self._items, name, None)
            if found is not None and len(found) == len(self):
                return np.asarray(found, np.int32)
        indices = tqdm(range(len(self)), f"reading the labels of {self.name}", unit=" images", delay=1)
        return np.fromiter((self._items[index][1] for index in indices), np.int32, len(self))

    def __len__(self) -> int:
        return len(self._items)

    def read(self, index: int) -> tuple[np.ndarray, int]:
        item = self._items[index]
        image, label = item if self._labeled else (item, -1)
        image = np.asarray(image)
        if image.ndim not in (2, 3):
            raise ValueError(
                f"{self.name}[{index}] must be an image, [height, width, channels] or [height, width], got "
                f"{list(image.shape)}"
            )
        try:
            check_type(image)
        except ValueError as error:
            raise ValueError(f"{self.name}[{index}]: {error}") from error
        return image if image.ndim == 3 else image[..., None], int(label)

    def digest(self) -> str:
        """Made from its name, its length and some of its items."""
        found = hashlib.sha256(f"{self.name} {len(self)}".encode())
        for index in spread(len(self), DIGESTED_ITEMS):
            image, label = self.read(int(index))
            found.update(f"{image.shape} {label}".encode())
            found.update(np.ascontiguousarray(image).data)
        return found.hexdigest()[:DIGITS]


def as_source(images: Any) -> Source:
    """A `Source` of the images that `pretrain` or `evaluate` is given.

    Args:
      images: a `Source`, an array (see `arrays`), or an object with `__len__` and `__getitem__` (see `ObjectSource`).
    Raises: TypeError for anything else; ValueError for images that cannot be used.
    """
    if isinstance(images, Source):
        return images
    if isinstance(images, np.ndarray) or hasattr(images, "__array__"):
        return arrays(images)
    if isinstance(images, (str, bytes)) or not (hasattr(images, "__len__") and hasattr(images, "__getitem__")):
        raise TypeError(
            "images must be a source of ssl_jax.data (arrays, folder, tfds), an array, or an object "
            f"with __len__ and __getitem__, got {images!r}"
        )
    return ObjectSource(images)


def windows(images: Any, side: int, *, stride: int = 0) -> Windows:
    """Square windows of large images, each of which counts as an image: see `Windows`. `images`: see `as_source`."""
    return Windows(as_source(images), side, stride=stride)


def split(source: Any, *, test_share: float = 0.2, seed: int = 0) -> tuple[Source, Source]:
    """(training, test): a random part of the images is for testing, the same part for the same seed.

    Each class is divided in the same proportion; images without a label count as a class. Images of one group stay on
    the same side: then the share is of the groups, and a group counts as of its most frequent class.

    Args:
      source: see `as_source`.
      test_share: share of the images, or of the groups, that is for testing, in (0, 1). Of two images of a class at
        least one is for testing and one for training.
      seed: of the random choice.
    Raises: ValueError for another share, and if no class has two images, or two groups.
    """
    source = as_source(source)
    cannot = f"{source.name} with its {len(source)} images cannot be divided with test_share={test_share}"
    if not 0 < test_share < 1:
        raise ValueError(f"{cannot}; give a share between 0 and 1, such as 0.2")
    try:
        return divided(source, test_share=test_share, salt=f"{seed} ")
    except ValueError as error:
        raise ValueError(f"{cannot}: {error}") from error

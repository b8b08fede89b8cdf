"""Images that a script gives: arrays, or any object with `__len__` and `__getitem__`; and `split`, which divides them.

train, test = data.split(data.arrays(images, labels, groups=patients), test_share=0.2, seed=0)
"""

import functools
import hashlib
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Integer
from tqdm import tqdm

from ssl_jax.data.sources import DIGITS, ArraySource, Source, Subset, spread

DIGESTED_ITEMS = 16  # of an object, at equal distances
LABELS = ("labels", "targets")  # attributes of an object that hold all its labels
LOOKED_AT = 1000  # images: `statistics` measures no more, and takes their mean and deviation for those of all


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
    name: str = "arrays",
) -> Source:
    """Images of an array. If it is memory-mapped, only the images that are asked for are read.

    Args:
      images: uint8 [images, height, width, channels], or without channels for gray ones.
      labels: [images] integers, indices into class_names; -1 for an image without one. None if there are none.
      groups: [images], what each image belongs to (patient, scene, camera). `split` never divides a group.
      class_names: one for each label; "0", "1", ... if not given.
      name: for messages and reports.
    Raises: ValueError for another dtype or shape, and for labels or groups that do not fit.
    """
    given: list[Any] = [None if x is None else np.asarray(x) for x in (labels, groups)]
    return ArraySource(
        images if isinstance(images, np.ndarray) else np.asarray(images), given[0], class_names, name, given[1]
    )


class ObjectSource(Source):
    """The images of any object with `__len__` and `__getitem__`. Several threads call `__getitem__`.

    Args:
      items: item i is an image, or (image, label). `numpy.asarray` must turn an image into uint8 [height, width,
        channels] or [height, width], as it does with arrays and Pillow's images. A label is an index into class_names,
        -1 for none. Labels come from the attribute `labels` or `targets` of `items`; without one, every item is read
        once.
      class_names: one for each label; "0", "1", ... if not given.
      name: for messages and reports; the name of the class of `items` if not given.
    Raises: ValueError for an empty object, and later, when read, for items that are no such images or labels.
    """

    def __init__(self, items: Items, class_names: Sequence[str] = (), name: str = ""):
        self.name, self._items = name or type(items).__name__, items
        if not len(items):
            raise ValueError(f"{self.name} has no items")
        self._labeled = isinstance(items[0], tuple)
        if (labels := self.labels) is not None:
            self.class_names = tuple(class_names) or tuple(map(str, range(int(labels.max(initial=-1)) + 1)))

    @functools.cached_property
    def labels(self) -> Integer[np.ndarray, " images"] | None:
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
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise ValueError(
                f"{self.name}[{index}] must be an image, uint8 [height, width, channels] or [height, width], got "
                f"{image.dtype} {list(image.shape)}"
            )
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
            "images must be of ssl_jax.data (arrays, folder, tfds), an array, or an object with __len__ and "
            f"__getitem__, got {images!r}"
        )
    return ObjectSource(images)


def split(source: Any, *, test_share: float = 0.2, seed: int = 0) -> tuple[Source, Source]:
    """(training, test): a random part of the images is for testing, the same part for the same seed.

    Images of one group stay on the same side. Without groups, each class is divided in the same proportion if every
    class has two images or more. Images without a label count as a class.

    Args:
      source: see `as_source`.
      test_share: share of the images that is for testing, in (0, 1); with groups, share of the groups.
      seed: of the random choice.
    Raises: ValueError for a share that leaves a side empty.
    """
    from sklearn import model_selection  # as late as this: it takes longer to import than all else

    source = as_source(source)
    count, options = len(source), {"n_splits": 1, "test_size": test_share, "random_state": seed}
    labels, groups = source.labels, source.groups
    by: Any
    try:
        if groups is not None:
            by = model_selection.GroupShuffleSplit(**options)
        elif labels is not None and np.unique(labels, return_counts=True)[1].min() > 1:
            by = model_selection.StratifiedShuffleSplit(**options)
        else:
            by = model_selection.ShuffleSplit(**options)
        train, test = next(by.split(np.zeros(count), labels, groups))
    except ValueError as error:
        raise ValueError(
            f"{source.name}, {count} images, cannot be split with test_share={test_share}: {error}"
        ) from error
    return Subset(source, np.sort(train)), Subset(source, np.sort(test))


def statistics(source: Any) -> dict[str, Any]:
    """{"channels", "mean", "std"} of images, for config.data: mean and std of each channel, of values in 0..1.

    At most `LOOKED_AT` images are measured, at equal distances.
    """
    source = as_source(source)
    chosen = spread(len(source), LOOKED_AT)
    pixels, total, squares = 0, np.zeros(()), np.zeros(())
    for index in tqdm(chosen, f"measuring {source.name}", unit=" images", delay=1):
        image = source[int(index)]
        values = image.reshape(-1, image.shape[-1]).astype(np.float64) / 255.0
        pixels, total, squares = pixels + len(values), total + values.sum(axis=0), squares + (values**2).sum(axis=0)
    mean = total / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 0.0))
    return {
        "channels": len(mean),
        "mean": tuple(round(float(x), 4) for x in mean),
        "std": tuple(round(max(float(x), 1e-4), 4) for x in std),
    }

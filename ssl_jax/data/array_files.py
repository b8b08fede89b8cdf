"""Files of arrays as sources of images: NumPy's, HDF5 and zarr. Images are read one at a time, as they are asked for.

images.npy                  the images
images.npz, data.h5         "images", and if there are "labels", "class_names", "targets", "target_names", "groups"
data.zarr#scans/images      the images; beside them scans/labels and so on
data.h5                     "train/images", "test/images", ... or "train_images", "test_images", ...: splits
"""

# pyright: reportMissingTypeStubs=false

import contextlib
import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from ssl_jax import paths
from ssl_jax.data import splits
from ssl_jax.data.array_stores import OPEN, readable
from ssl_jax.data.formats import OpenImage, UndecodableImage
from ssl_jax.data.formats.stored import Stored
from ssl_jax.data.normalization import DTYPES
from ssl_jax.data.sources import Source, digest_of, spread
from ssl_jax.data.targets import MULTILABEL, REGRESSION, Targets, make

FILES = re.compile(r"(?P<file>.+\.(?P<ending>npy|npz|h5|hdf5|zarr))/?(#(?P<key>.+))?")
REMEDY = "for a split of its own, save arrays named train/images and test/images"
DIGESTED_IMAGES = 16
# Images with their channels first have so few at most, in at least twice as many rows and columns.
MOST_CHANNELS_FIRST = 16
# Type of numbers on file -> type of images, which holds every value (float64 is rounded).
TYPES = {name: name for name in DTYPES} | {
    "bool": "uint8",
    "int8": "int16",
    "float16": "float32",
    "float64": "float32",
}


class StoredArray(Source):
    """Images of an array on file.

    Args:
      images: [images, height, width, channels], or [images, height, width] for gray ones; anything with `shape`,
        `dtype` and `__getitem__`. An image becomes uint8, uint16, int16 or float32: see TYPES.
      name: for messages and reports.
      labels: indices into class_names, -1 for an image without one; None if there are none.
      class_names: one for each label.
      groups: what each image belongs to; None if there are none.
      targets: of the images; None if there are none.
    Raises: ValueError for other numbers or another shape, and for labels, groups or targets that do not fit.
    """

    def __init__(
        self,
        images: Any,
        name: str,
        labels: Int32[np.ndarray, " images"] | None = None,
        class_names: tuple[str, ...] = (),
        groups: np.ndarray | None = None,
        targets: Targets | None = None,
    ):
        _check_images(name, tuple(images.shape), np.dtype(images.dtype))
        numbers = None if targets is None else targets.values[:, 0]
        for what, found in (("labels", labels), ("groups", groups), ("targets", numbers)):
            if found is not None and found.shape != images.shape[:1]:
                raise ValueError(
                    f"{name}: {images.shape[0]:,} images need as many {what}, got {what} of shape {list(found.shape)}"
                )
        self._images, self._labels, self.groups, self.targets = images, labels, groups, targets
        self._type = np.dtype(TYPES[np.dtype(images.dtype).name])
        self.name, self.class_names = name, class_names

    @property
    def labels(self):
        return self._labels

    def __len__(self):
        return self._images.shape[0]

    def read(self, index: int):
        try:
            image = np.ascontiguousarray(self._images[index], self._type)
        except (OSError, RuntimeError, ValueError) as error:  # a damaged chunk
            raise UndecodableImage(f"{self.name}[{index}]", str(error) or type(error).__name__) from error
        return image if image.ndim == 3 else image[..., None], -1 if self._labels is None else int(self._labels[index])

    def open(self, index: int):
        height, width, *channels = self._images.shape[1:]

        def window(top: int, left: int, h: int, w: int) -> np.ndarray:
            pixels = np.asarray(self._images[index, top : top + h, left : left + w])
            return pixels if channels else pixels[..., None]

        shape = (height, width, channels[0] if channels else 1)
        stored = Stored(shape, np.dtype(self._images.dtype), window, windowed=True)
        return OpenImage(stored, f"{self.name}[{index}]")

    def digest(self):
        """Made from the shape, the type, the labels, the targets and some images at equal distances."""
        labels = "" if self._labels is None else digest_of(map(str, self._labels))
        found = [Path(self.name).name, str(tuple(self._images.shape)), self._type.name, labels]
        if self.targets is not None:
            found.append(self.targets.digest())
        for index in spread(len(self), DIGESTED_IMAGES):
            with contextlib.suppress(UndecodableImage):  # named when it is read for a batch
                found.append(hashlib.sha256(self.read(int(index))[0].data).hexdigest())
        return digest_of(found)


def array_splits(text: str) -> dict[str, Source]:
    """Split -> its images, all with the same class names; a file whose arrays name no splits is "train".

    Beside the images there may be `labels`, integers or text, -1 or "" for an image without one, or [images, labels] of
    1, 0 and NaN for several; `class_names`, one for each label; `targets`, numbers [images] or [images, outputs], and
    `target_names`; and `groups`.

    Args:
      text: a file, and behind # the array of images if it has another name than `images`: data.h5#scans/pixels.
    Raises: FileNotFoundError; ValueError for a file that cannot be read, a library that is missing, and arrays that are
      no images or no labels.
    """
    match = FILES.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{text!r} names no file of arrays: NAME.npy, .npz, .h5 or .zarr, and behind # the array in it"
        )
    path = paths.expanded(paths.path(match["file"]))
    if not path.exists():
        raise FileNotFoundError(f"there is no file {str(path)!r}{paths.looked_from(path)}")
    with readable(path, match["ending"]):
        store = OPEN[match["ending"]](path)
        of_split = _arrays(store, match["key"] or "")
        images = {split: store[name] for split, (name, _) in of_split.items()}
        labels = {split: _beside(store, near, "labels") for split, (_, near) in of_split.items()}
        numbers = {split: _beside(store, near, "targets") for split, (_, near) in of_split.items()}
        places = (*(near for _, near in of_split.values()), "{}")
        names, target_names = (
            next((found for near in places if (found := _beside(store, near, name)) is not None), None)
            for name in ("class_names", "target_names")
        )
        groups = {split: _beside(store, near, "groups") for split, (_, near) in of_split.items()}
        there = ", ".join(store) or "none"
    if not of_split:
        raise ValueError(f"{text} has no array {match['key'] or 'images'!r}, only {there}; name it behind a #")
    several = {split: found for split, found in labels.items() if found is not None and found.ndim == 2}
    targets = {split: _targets(text, found, numbers[split], names, target_names) for split, found in labels.items()}
    labels |= dict.fromkeys(several)
    class_names = () if several else _class_names(text, labels.values(), names)
    return {
        split: StoredArray(
            images[split], text, _indices(labels[split], class_names), class_names, groups[split], targets[split]
        )
        for split in of_split
    }


def _arrays(store: Any, key: str) -> dict[str, tuple[str, str]]:
    """Split -> (the name of its images, what the arrays beside them are called, with {} for "labels").

    `store`: what OPEN gives: name -> array, "folder/name" -> array in a folder; its names are iterated over. {} if
    there are no images of this name.
    """
    if key and f"{key}/images" not in store:
        if key in store:
            return {"train": (key, (key.removesuffix("images") if key.endswith("images") else _folder(key)) + "{}")}
    elif (near := f"{key}/{{}}" if key else "{}").format("images") in store:
        return {"train": (near.format("images"), near)}
    else:
        nears = {
            split: near
            for split in ("train", *splits.TEST_NAMES)
            for near in (split + "/{}", split + "_{}")
            if near.format("images") in store
        }
        return {split: (near.format("images"), near) for split, near in nears.items()}
    return {}


def _folder(key: str) -> str:
    return key[: key.rfind("/") + 1]


def _beside(store: Any, template: str, name: str) -> np.ndarray | None:
    """All of a small array, text as text; None if it is not there. A column [images, 1] becomes [images]."""
    if (key := template.format(name)) not in store:
        return None
    found = np.asarray(store[key][...])
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.dtype.kind in "OSUT":
        found = np.array([x.decode() if isinstance(x, bytes) else str(x) for x in found.ravel()]).reshape(found.shape)
    return found


def _class_names(text: str, labels: Any, names: np.ndarray | None) -> tuple[str, ...]:
    """The classes of all splits."""
    given = [found for found in labels if found is not None]
    for found in given:
        if found.ndim != 1 or found.dtype.kind not in "iuU":
            raise ValueError(
                f"{text}: labels must be integers or text, one an image, got {found.dtype} {list(found.shape)}"
            )
    if not given:
        return ()
    if len({found.dtype.kind == "U" for found in given}) > 1:
        raise ValueError(f"{text}: labels are text in one split and integers in another; save one kind")
    if given[0].dtype.kind == "U":
        return splits.class_names(str(label) for found in given for label in np.unique(found))
    low, high = min(int(f.min(initial=0)) for f in given), max(int(f.max(initial=-1)) for f in given)
    class_names = tuple(map(str, range(high + 1))) if names is None else tuple(map(str, names))
    if low < -1 or high >= len(class_names):
        raise ValueError(
            f"{text}: labels are {low} to {high}, for {len(class_names)} class names; they must be indices into "
            "class_names, or -1 for an image without a label"
        )
    return class_names


def _targets(
    text: str,
    labels: np.ndarray | None,
    numbers: np.ndarray | None,
    class_names: np.ndarray | None,
    names: np.ndarray | None,
) -> Targets | None:
    """Of one split: labels [images, labels] of 1 and 0, or numbers that were measured."""
    if labels is not None and labels.ndim == 2:
        if numbers is not None:
            raise ValueError(f"{text} has labels {list(labels.shape)} and targets; keep one of them")
        return make([*labels], () if class_names is None else [*map(str, class_names)], MULTILABEL, f"{text}: labels")
    return (
        numbers
        if numbers is None
        else make(numbers, () if names is None else [*map(str, names)], REGRESSION, f"{text}: targets")
    )


def _indices(labels: np.ndarray | None, class_names: tuple[str, ...]) -> Int32[np.ndarray, " images"] | None:
    if labels is None or labels.dtype.kind != "U":
        return None if labels is None else labels.astype(np.int32)
    return splits.indices(labels.tolist(), class_names)


def _check_images(name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if dtype.name not in TYPES or len(shape) not in (3, 4) or not all(shape):
        raise ValueError(
            f"{name}: images must be [images, height, width, channels], or without channels for gray ones, of "
            f"{', '.join(TYPES)}, got {dtype} {list(shape)}"
        )
    if len(shape) == 4 and shape[1] <= MOST_CHANNELS_FIRST and 2 * shape[1] <= min(shape[2:]):
        raise ValueError(
            f"{name}: images {list(shape)} look as if their channels came first; save them as [images, height, width, "
            "channels]: numpy.moveaxis(images, 1, -1)"
        )
    if len(shape) == 3 and shape[2] in (3, 4) and min(shape[:2]) > MOST_CHANNELS_FIRST:
        raise ValueError(
            f"{name}: {list(shape)} looks like one image; save [images, height, width, channels], "
            "for one image image[None]"
        )

"""Where images come from: TFDS data sets, folders of files, Debian's Fashion-MNIST, arrays.

    source = sources.load("folder", path="photos")
    source[0]                                           # uint8 [height, width, 3]
    train, test = sources.load_pair("cifar10", train_split="train", test_split="test")

Nothing here imports TensorFlow. TFDS is imported only when one of its data sets is asked for.
"""

import abc
import contextlib
import difflib
import functools
import hashlib
import importlib.util
import itertools
import math
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Integer, Shaped, UInt8
from tqdm import tqdm

from ssl_jax.data import fashion_mnist, folders
from ssl_jax.data.decode import UndecodableImage, decode_image, read_file

__all__ = ["ArraySource", "Source", "Subset", "UndecodableImage", "load", "load_pair", "open_data", "open_pair"]

CHANNELS = (1, 3)
DIGITS = 12  # hexadecimal digits of a digest
DIGESTED_TOGETHER = 1024  # images read at a time for it
DIGESTED_BYTES = 2**28  # of an array; takes about half a second
ARRAY_FILES = (".npy", ".npz")
DEBIAN_FOLDERS = {"/usr/share/tuxpaint/stamps": "tuxpaint-stamps-default"}  # folder of images: its package
PREPARE = """
import sys, tensorflow_datasets as tfds
name, data_dir = sys.argv[1:]
tfds.builder(name, data_dir=data_dir or None).download_and_prepare(file_format="array_record")
"""


def load(name: str, *, split: str = "train", path: str | None = None, channels: int = 3) -> "Source":
    """The images of one split.

    Args:
      name: of a TFDS data set ("cifar10", "imagenet2012", ...), which is downloaded and prepared if it is not yet; or
        "folder". "fashion_mnist" is read from Debian's package if that is installed and TFDS has not prepared it.
      split: for a TFDS data set, TFDS's own, with its slices ("train[:10%]"); for a folder see `ssl_jax.data.folders`.
      path: the folder. For a TFDS data set, where TFDS keeps its data, if not in its usual place.
      channels: 1 or 3; images are converted as they are read.
    Raises: FileNotFoundError, ValueError; the message says what to do.
    """
    if name == "folder":
        return folder(path or "", split=split, channels=channels)
    return tfds(name, split=split, data_dir=path, channels=channels)


def folder(path: str | Path, *, split: str = "train", channels: int = 3) -> "Source":
    """The image files below a folder, at any depth; sub-folders are classes: see `ssl_jax.data.folders`.

    Args:
      split: "train"; or "test", "validation" or "val" if the folder has it.
      channels: 1 or 3; images are converted as they are read.
    Raises: FileNotFoundError, ValueError; the message says what to do.
    """
    _check_channels(channels)
    root = _folder(str(path))
    splits = folders.find_splits(root)
    return _folder_source(root, folders.pick(splits, split), folders.class_names(splits.values()), channels)


def tfds(name: str, *, split: str = "train", data_dir: str | None = None, channels: int = 3) -> "Source":
    """A split of a TFDS data set, which is downloaded and prepared if it is not yet.

    "fashion_mnist" is read from Debian's package if that is installed and TFDS has not prepared it.

    Args:
      split: TFDS's own, with its slices ("train[:10%]").
      data_dir: where TFDS keeps its data, if not in its usual place.
      channels: 1 or 3; images are converted as they are read.
    Raises: ValueError; the message says what to do.
    """
    _check_channels(channels)
    return _named_source(name, split, data_dir, channels)


def load_pair(
    name: str, *, train_split: str, test_split: str, path: str | None = None, channels: int = 3
) -> tuple["Source", "Source"]:
    """(training, test), with the same class names; see `load`.

    A folder without a split for testing is divided: a fifth of each class, the same images each time, is for testing.
    `load` gives all images. So a backbone may have been trained on these test images, but never on their labels.
    """
    if name != "folder":
        first, second = (load(name, split=split, path=path, channels=channels) for split in (train_split, test_split))
        return first, second
    _check_channels(channels)
    root = _folder(path)
    splits = folders.find_splits(root)
    train = folders.pick(splits, train_split)
    train, test = (train, folders.pick(splits, test_split)) if len(splits) > 1 else folders.divide(train)
    names = folders.class_names(splits.values())
    return _folder_source(root, train, names, channels), _folder_source(root, test, names, channels)


def open_data(text: str, *, split: str = "train", channels: int = 3) -> "Source":
    """The images that the DATA of a command means: a folder, an array file, or a TFDS name.

    Args:
      text: a folder at any depth; a `.npy` of images, uint8 [images, height, width, channels], or without channels for
        gray ones; a `.npz` with such `images` and optionally `labels`; or the name of a TFDS data set.
      split: of a folder or a TFDS data set, see `load`. An array file is one split, whatever this argument says.
      channels: 1 or 3, see `load`. The channels of an array file are not converted.
    Raises: FileNotFoundError, ValueError; the message says what to do.
    """
    if text.endswith(ARRAY_FILES):
        return _array_file(Path(text))
    if _is_folder(text):
        return load("folder", split=split, path=text, channels=channels)
    with _no_folder(text):
        return load(text, split=split, channels=channels)


def open_pair(
    text: str, *, train_split: str = "train", test_split: str = "test", channels: int = 3
) -> tuple["Source", "Source"]:
    """(training, test) of what `open_data` takes. Without a test split, a fifth of each class is for testing, the same
    each time."""
    if not text.endswith(ARRAY_FILES):
        splits: dict[str, Any] = dict(train_split=train_split, test_split=test_split, channels=channels)
        if _is_folder(text):
            return load_pair("folder", path=text, **splits)
        with _no_folder(text):
            return load_pair(text, **splits)
    source = _array_file(Path(text))
    labels = np.zeros(len(source), int) if source.labels is None else source.labels
    test = np.zeros(len(source), bool)
    for label in np.unique(labels):
        rows = np.random.default_rng(0).permutation(np.flatnonzero(labels == label))
        test[rows[: max(round(folders.TEST_SHARE * len(rows)), 1) if len(rows) > 1 else 0]] = True
    if not test.any():
        raise ValueError(
            f"{text}: {len(source)} image cannot be divided for evaluation; it takes two of a class at least"
        )
    return Subset(source, np.flatnonzero(~test)), Subset(source, np.flatnonzero(test))


def _is_folder(text: str) -> bool:
    return Path(text).expanduser().is_dir() or text.startswith((".", "~", os.sep))


@contextlib.contextmanager
def _no_folder(text: str) -> Iterator[None]:
    """Raises a ValueError of its context again; the new message adds that `text` is no folder either."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"there is no folder {text!r} (looked from {Path.cwd()}), and as a name: {error}") from error


def _array_file(path: Path) -> "ArraySource":
    """Raises: FileNotFoundError; ValueError for a file that is no array file, or has no images."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r} (looked from {Path.cwd()})")
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} is no file of arrays ({error}); save it again with numpy.save or numpy.savez"
        ) from error
    if isinstance(found, np.ndarray):
        return ArraySource(found, name=str(path))
    with found:
        if "images" not in found:
            raise ValueError(f"{path} has no array 'images', only {', '.join(found) or 'none'}; name it so")
        return ArraySource(found["images"], found.get("labels"), name=str(path))


class Source(abc.ABC):
    """Images by index, decoded when asked for; safe to read from several threads.

    Attributes:
      name: for messages and reports.
      class_names: one for each label; () if the set has no labels.
      groups: what each image belongs to (patient, scene, camera), for `ssl_jax.data.split`; None if that is not known.
    """

    name: str
    class_names: tuple[str, ...] = ()
    groups: Shaped[np.ndarray, " images"] | None = None

    @property
    @abc.abstractmethod
    def labels(self) -> Int32[np.ndarray, " images"] | None:
        """Indices into class_names, -1 for an image without a label; None if the set has no labels."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def read(self, index: int) -> tuple[UInt8[np.ndarray, "height width channels"], int]:
        """(image, its label or -1). Raises: UndecodableImage."""

    def image_name(self, index: int) -> str:
        """What an image is called in tables: a file's path in its folder; its index if images have no names."""
        return str(index)

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "height width channels"]:
        return self.read(index)[0]

    def digest(self) -> str:
        """12 hexadecimal digits that tell these images, in this order, from others. Where images have names, none is
        read for it."""
        return _digest([self.name])


class ArraySource(Source):
    """Images in memory or in a memory-mapped file. From a file only the images that are asked for are read.

    Args:
      images: uint8 [images, height, width, channels], or without channels for gray ones.
      labels: -1 for an image without one; None if there are none.
      class_names: one for each label; "0", "1", ... if not given.
      groups: what each image belongs to, for `split`; None if there are none.
    Raises: ValueError for another dtype or shape, and for labels or groups that do not fit.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: Integer[np.ndarray, " images"] | None = None,
        class_names: Sequence[str] = (),
        name: str = "array",
        groups: Shaped[np.ndarray, " images"] | None = None,
    ):
        if images.dtype != np.uint8 or images.ndim not in (3, 4):
            raise ValueError(
                f"images must be uint8 [images, height, width, channels], got {images.dtype} {list(images.shape)}; "
                "for floats in 0..1: (255 * images).round().astype('uint8')"
            )
        if groups is not None and groups.shape != (len(images),):
            raise ValueError(f"{len(images)} images need as many groups, got groups of shape {list(groups.shape)}")
        self._images, self.groups = images if images.ndim == 4 else images[..., None], groups
        self._labels, self.name, self.class_names = None, name, tuple(class_names)
        if labels is not None:
            if labels.shape != (len(images),):
                raise ValueError(f"{len(images)} images need as many labels, got labels of shape {list(labels.shape)}")
            self._labels = labels.astype(np.int32)
            low, high = self._labels.min(initial=0), self._labels.max(initial=-1)
            self.class_names = self.class_names or tuple(str(k) for k in range(high + 1))
            if low < -1 or high >= len(self.class_names):
                raise ValueError(
                    f"labels are {low} to {high}, for {len(self.class_names)} class names; "
                    "they must be indices into class_names, or -1 for an image without a label"
                )

    @property
    def labels(self):
        return self._labels

    def __len__(self):
        return len(self._images)

    def read(self, index):
        return np.asarray(self._images[index]), -1 if self._labels is None else int(self._labels[index])

    def digest(self):
        """Made from the images and labels. Of more than DIGESTED_BYTES, some images at equal distances are taken."""
        shape, count = self._images.shape, len(self._images)
        size = max(math.prod(shape[1:]), 1)
        chosen = spread(count, DIGESTED_BYTES // size + 1)
        found = hashlib.sha256(f"{self.name} {shape} {self._images.dtype}".encode())
        for start in range(0, len(chosen), DIGESTED_TOGETHER):
            found.update(np.ascontiguousarray(self._images[chosen[start : start + DIGESTED_TOGETHER]]).data)
        if self._labels is not None:
            found.update(self._labels.data)
        return found.hexdigest()[:DIGITS]


class Subset(Source):
    """Some images of another source, in the order of `indices`."""

    def __init__(self, source: Source, indices: Integer[np.ndarray, " images"]):
        self._source, self._indices = source, np.asarray(indices)
        self.name, self.class_names = source.name, source.class_names
        self.groups = None if source.groups is None else source.groups[self._indices]

    @property
    def labels(self):
        labels = self._source.labels
        return None if labels is None else labels[self._indices]

    def __len__(self):
        return len(self._indices)

    def read(self, index):
        return self._source.read(int(self._indices[index]))

    def image_name(self, index):
        return self._source.image_name(int(self._indices[index]))

    def digest(self):
        return _digest(itertools.chain([self._source.digest()], map(str, self._indices)))


class FolderSource(Source):
    """Image files.

    Args:
      root: the folder.
      files: relative to it.
      labels: of the files; None if there are none.
      class_names: one for each label.
      channels: 1 or 3, of the images as they are read.
    """

    def __init__(
        self,
        root: Path,
        files: Sequence[str],
        labels: Int32[np.ndarray, " images"] | None,
        class_names: tuple[str, ...],
        channels: int,
    ):
        self._root, self._files, self._labels, self._channels = root, files, labels, channels
        self.name, self.class_names = str(root), class_names

    @property
    def labels(self):
        return self._labels

    def __len__(self):
        return len(self._files)

    def read(self, index):
        file = self._files[index]
        data = read_file(self._root / file, file)
        label = -1 if self._labels is None else int(self._labels[index])
        return decode_image(data, self._channels, file), label

    def image_name(self, index):
        return self._files[index]

    def digest(self):
        return _digest(self._files)


class TFDSSource(Source):
    """A split of a prepared TFDS data set. Its images are decoded here, never by TensorFlow.

    Args:
      builder: of a data set with an image feature.
      split: as TFDS writes it: "train", "train[:10%]", "train+unlabelled".
      channels: 1 or 3, of the images as they are read.
    Raises: ValueError for data that cannot be read like this, and for a split that the data set does not have.
    """

    def __init__(self, builder: Any, split: str, channels: int):
        import tensorflow_datasets as tfds

        features = dict(builder.info.features.items())
        images = [name for name, feature in features.items() if isinstance(feature, tfds.features.Image)]
        if not images:
            raise ValueError(f"TFDS's {builder.name} has no image feature; its features are {', '.join(features)}")
        skip_decoding = {name: tfds.decode.SkipDecoding() for name in images}
        try:
            self._records = builder.as_data_source(split=split, decoders=skip_decoding)
        except NotImplementedError as error:
            raise ValueError(
                f"{builder.data_path} holds {builder.name} in a format without random access; "
                "move it away, so that it is prepared again as array_record"
            ) from error
        self.name, self._channels = f"{builder.name}/{split}", channels
        self._full_name = f"{builder.info.full_name}/{split}"  # with its version
        self._image = "image" if "image" in images else images[0]
        self._has_labels = isinstance(features.get("label"), tfds.features.ClassLabel)
        self.class_names = tuple(features["label"].names) if self._has_labels else ()

    @functools.cached_property
    def labels(self):
        """The first use reads every record."""
        if not self._has_labels:
            return None
        records = tqdm(self._records, f"reading the labels of {self.name}", unit=" images", delay=1)
        return np.fromiter((record["label"] for record in records), np.int32, len(self))

    def __len__(self):
        return len(self._records)

    def read(self, index):
        record = self._records[index]
        label = int(record["label"]) if self._has_labels else -1
        return decode_image(record[self._image], self._channels, f"{self.name}[{index}]"), label

    def digest(self):
        return _digest([self._full_name])


def spread(count: int, most: int) -> Integer[np.ndarray, " chosen"]:
    """At most `most` of `count` indices, at equal distances, with the first and the last."""
    return np.unique(np.linspace(0, max(count - 1, 0), min(count, most)).astype(int))


def _digest(names: Iterable[str]) -> str:
    found = hashlib.sha256()
    for name in names:
        found.update(os.fsencode(name) + b"\0")
    return found.hexdigest()[:DIGITS]


def _check_channels(channels: int) -> None:
    if channels not in CHANNELS:
        raise ValueError(f"channels must be 1 (gray) or 3 (RGB), got {channels}")


def _folder(path: str | None) -> Path:
    if not path:
        raise ValueError("a folder of images needs its path")
    if path in DEBIAN_FOLDERS and not Path(path).exists():
        raise FileNotFoundError(
            f"there is no folder {path!r}; on Debian, as root: apt install {DEBIAN_FOLDERS[path]}, or give a folder of "
            "your own, --config.data.path=MY_IMAGES"
        )
    return Path(path).expanduser()


def _folder_source(root: Path, split: folders.Split, class_names: tuple[str, ...], channels: int) -> FolderSource:
    return FolderSource(root, split.files, folders.labels(split, class_names), class_names, channels)


def _named_source(name: str, split: str, data_dir: str | None, channels: int) -> Source:
    if name == "fashion_mnist" and not _tfds_folder(name, data_dir).exists() and (files := fashion_mnist.installed()):
        return _debians(files, split, channels)  # without importing TFDS, which takes seconds
    builder = _tfds_builder(name, data_dir)
    if not (builder.data_path / "dataset_info.json").exists():  # as builder.is_prepared(), without its warning
        if name == "fashion_mnist" and (files := fashion_mnist.installed()):
            return _debians(files, split, channels)
        _prepare(builder, name, data_dir)
        builder = _tfds_builder(name, data_dir)
    return TFDSSource(builder, split, channels)


def _debians(files: Any, split: str, channels: int) -> ArraySource:
    images, labels = fashion_mnist.load(files, split)
    images = np.broadcast_to(images[..., None], (*images.shape, channels))
    return ArraySource(images, labels, fashion_mnist.CLASS_NAMES, "fashion_mnist")


def _tfds_folder(name: str, data_dir: str | None) -> Path:
    """Where TFDS would have prepared a data set."""
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser() / name


def _tfds_builder(name: str, data_dir: str | None) -> Any:
    import tensorflow_datasets as tfds

    core: Any = tfds.core  # which imports its modules when they are first used
    if core.naming.parse_builder_name_kwargs(name)[0].namespace:
        raise ValueError(
            f"{name!r} is not TFDS's own: what has a namespace is read by code that is fetched from elsewhere, and "
            "that is not run; save its images to a folder, and use that"
        )
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        near = difflib.get_close_matches(name, [*tfds.list_builders(with_community_datasets=False), "folder"], n=1)
        remedy = f"did you mean {near[0]!r}?" if near else "for images of your own it is 'folder', with their path"
        raise ValueError(f"TFDS has no data set {name!r}; {remedy}") from error


def _prepare(builder: Any, name: str, data_dir: str | None) -> None:
    """Downloads and converts in another process: here TensorFlow would take the accelerator's memory from JAX."""
    debian = f", or, as root: apt install {fashion_mnist.PACKAGE}" if name == "fashion_mnist" else ""
    if importlib.util.find_spec("tensorflow") is None:
        raise ValueError(
            f"{name} is not prepared in {builder.data_path}, and preparing it (once) needs TensorFlow: "
            f"pip install 'ssl_jax[prepare]'{debian}"
        )
    if subprocess.run([sys.executable, "-c", PREPARE, name, data_dir or ""]).returncode:
        raise ValueError(
            f"TFDS could not prepare {name}; its reason is above. Some data sets have to be downloaded by hand first, "
            f"as https://www.tensorflow.org/datasets/catalog/{name} says{debian}"
        )

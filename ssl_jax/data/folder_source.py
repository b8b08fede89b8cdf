"""Image files below a folder as a source of images. data/folders.py finds the files, their splits and their classes."""

import copy
import functools
import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32
from tqdm import tqdm

from ssl_jax import paths
from ssl_jax.data import folders, formats
from ssl_jax.data.formats import Facts, OpenImage, UndecodableImage, check_channels, check_pages, table
from ssl_jax.data.names import Names
from ssl_jax.data.sources import Source, digest_of
from ssl_jax.paths import AnyPath

DEBIAN_FOLDERS = {"/usr/share/tuxpaint/stamps": "tuxpaint-stamps-default"}  # folder of images: its package


def folder(
    path: str | AnyPath,
    *,
    split: str = "train",
    channels: int | None = 3,
    bands: Sequence[int] = (),
    pages: str = "",
) -> Source:
    """The image files below a folder, at any depth; sub-folders are classes: see `ssl_jax.data.folders`.

    docs/formats.md lists the formats. Images keep their type: uint8, uint16, int16 or float32.

    Args:
      split: "train"; or "test", "validation" or "val" if the folder has it.
      channels: 1 (gray) and 3 (RGB) convert between these two as images are read; any other number must be the images'
        own; None: as each image is.
      bands: indices of the bands to keep, in this order, before `channels`; (): all.
      pages: what the pages of a file are if it does not say it: "bands" of one image, or "images"; "" refuses it.
    Raises: FileNotFoundError, ValueError; the message says what to do.
    """
    root = _folder(str(path), channels, bands, pages)
    splits = folders.find_splits(root)
    names = folders.class_names(splits.values())
    return _folder_source(root, folders.pick(splits, split), names, channels, bands, pages)


def folder_pair(
    path: str | AnyPath,
    *,
    train_split: str,
    test_split: str,
    channels: int | None = 3,
    bands: Sequence[int] = (),
    pages: str = "",
) -> tuple[Source, Source]:
    """(training, test), with the same class names. See `opening.load_pair`. Images of one file stay on one side."""
    root = _folder(str(path), channels, bands, pages)
    splits = folders.find_splits(root)
    train = folders.pick(splits, train_split)
    train, test = (train, folders.pick(splits, test_split)) if len(splits) > 1 else folders.divide(train)
    names = folders.class_names(splits.values())
    first, second = (_folder_source(root, part, names, channels, bands, pages) for part in (train, test))
    return first, second


def image_file(path: str | AnyPath, *, channels: int | None = 3, bands: Sequence[int] = (), pages: str = "") -> Source:
    """The image of one file, or the images that it holds, without labels.

    Args:
      channels, bands, pages: see `folder`.
    Raises: FileNotFoundError if there is no such file; ValueError for channels, bands or pages that do not fit.
    """
    path = paths.expanded(paths.path(path))
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}{paths.looked_from(path)}")
    root = _folder(str(path.parent), channels, bands, pages)
    facts = _look(root, [path.name], pages)
    found = FolderSource(root, [path.name], None, (), channels, bands, pages, facts)
    found.name = str(path)
    return found


def folder_splits(path: str | AnyPath, channels: int | None) -> dict[str, Source]:
    """Split -> its images, all with the same class names. A split without images is left out. Raises: as `folder`."""
    root = _folder(str(path), channels, (), "")
    splits = folders.find_splits(root)
    names = folders.class_names(splits.values())
    return {name: _folder_source(root, of, names, channels, (), "") for name, of in splits.items() if of.files}


class FolderSource(Source):
    """Image files. An image of a file that holds several is called `scan.nii.gz#12`, the first of them `#0`.

    Attributes:
      groups: the file of each image, if a file holds several; else None.
      band_names: as the first file that names its bands names them; ().
      nodata: the values that stand for missing pixels, as the files' metadata give them. Floats are NaN there already.

    Args:
      root: the folder.
      files: relative to it.
      labels: of the files; None if there are none.
      class_names: one for each label.
      channels, bands, pages: see `folder`.
      facts: of the files, see `formats.look`; one image in each if not given.
    """

    def __init__(
        self,
        root: AnyPath,
        files: Sequence[str],
        labels: Int32[np.ndarray, " files"] | None,
        class_names: tuple[str, ...],
        channels: int | None,
        bands: Sequence[int] = (),
        pages: str = "",
        facts: Sequence[Facts] = (),
    ):
        self._root, self._files = root, files
        self._channels, self._bands, self._pages = channels, tuple(bands), pages
        self.name, self.class_names = str(root), class_names
        self._counts = np.array([fact.count for fact in facts] or [1] * len(files), int)
        self._ends = np.cumsum(self._counts)
        self._labels = None if labels is None else np.repeat(labels, self._counts)
        if (self._counts > 1).any():
            self.groups = np.repeat(np.arange(len(files)), self._counts)
        names = next((fact.band_names for fact in facts if fact.band_names), ())
        picked = bands and max(bands) < len(names)
        self.band_names = tuple(names[band] for band in bands) if picked else () if bands else names
        self.nodata = tuple(sorted({fact.nodata for fact in facts if fact.nodata is not None}))

    @property
    def labels(self) -> Int32[np.ndarray, " images"] | None:
        return self._labels

    def __len__(self):
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, index: int):
        return self.read_reduced(index)

    def read_reduced(self, index: int, reduce: formats.Reduce | None = None):
        file, position = self._place(index)
        name = _named(file, position)
        path = os.path.join(self._root, file)
        image = formats.read_image(path, name, self._channels, self._bands, self._pages, position, reduce)
        return image, -1 if self._labels is None else int(self._labels[index])

    def encoded(self, index: int):
        file, position = self._place(index)
        return paths.read_bytes(self._root / file) if position is None else None

    def open(self, index: int) -> OpenImage:
        """The image, for windows of it. Raises: UndecodableImage."""
        file, position = self._place(index)
        return formats.open_image(
            self._root / file,
            index=position,
            channels=self._channels,
            bands=self._bands,
            pages=self._pages,
            name=_named(file, position),
        )

    def with_channels(self, channels: int):
        found = copy.copy(self)
        found._channels = channels
        return found

    def image_name(self, index: int):
        return _named(*self._place(index))

    def origin(self, index: int):
        return f"{self._real_root}/{self.image_name(index)}"

    @functools.cached_property
    def _real_root(self) -> AnyPath:
        return paths.resolved(self._root)

    def digest(self):
        if self.groups is None:  # each file holds one image, whose name it has
            return digest_of(self._files)
        return digest_of(self.image_name(index) for index in range(len(self)))

    def _place(self, index: int) -> tuple[str, int | None]:
        """(file, position of the image in it, None if it is the only one)."""
        if self.groups is None:  # each file holds one image
            return self._files[index], None
        number = int(np.searchsorted(self._ends, index, side="right"))
        count = int(self._counts[number])
        return self._files[number], int(index - self._ends[number] + count) if count > 1 else None


def _named(file: str, position: int | None) -> str:
    return file if position is None else f"{file}#{position}"


def _folder(path: str, channels: int | None, bands: Sequence[int], pages: str) -> AnyPath:
    check_channels(channels, bands)
    check_pages(pages)
    if not path:
        raise ValueError("a folder of images needs its path, --config.data.path=MY_IMAGES")
    if path in DEBIAN_FOLDERS and not os.path.exists(path):
        raise FileNotFoundError(
            f"there is no folder {path!r}; on Debian, as root: apt install {DEBIAN_FOLDERS[path]}, or give a folder of "
            "your own, --config.data.path=MY_IMAGES"
        )
    return paths.expanded(paths.path(path))


def _folder_source(
    root: AnyPath,
    split: folders.Split,
    class_names: tuple[str, ...],
    channels: int | None,
    bands: Sequence[int],
    pages: str,
) -> FolderSource:
    labels = folders.labels(split, class_names)
    facts = _look(root, split.files, pages)
    return FolderSource(root, Names.of(split.files), labels, class_names, channels, bands, pages, facts)


def _look(root: AnyPath, files: Sequence[str], pages: str) -> list[Facts]:
    """What the headers say, of files that may hold several images. A damaged file counts as one, and is named when it
    is read."""
    found = [Facts()] * len(files)
    several = [k for k, file in enumerate(files) if (form := table.of_name(file)) is None or form.several]
    for k in tqdm(several, f"reading the headers in {root}", unit=" files", delay=1):
        try:
            found[k] = formats.look(root / files[k], pages)
        except UndecodableImage:
            continue
    return found

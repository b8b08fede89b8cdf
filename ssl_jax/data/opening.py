"""Opens the images that a config or a command names: a folder, a list, files of arrays or records, a TFDS data set.

source = opening.load("folder", path="photos")
source[0]                                           # uint8 [height, width, 3]
train, test = opening.load_pair("cifar10", train_split="train", test_split="test")
"""

import contextlib
import dataclasses
import os
import re
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np

from ssl_jax import paths
from ssl_jax.data import array_files, folders, packed_index, shards, splits
from ssl_jax.data.array_files import array_splits
from ssl_jax.data.array_record_source import array_record_splits
from ssl_jax.data.bands import Bands
from ssl_jax.data.emoji_source import is_emoji, open_emoji
from ssl_jax.data.folder_source import folder, folder_pair, folder_splits, image_file
from ssl_jax.data.formats import table
from ssl_jax.data.list_source import REMEDY, list_splits
from ssl_jax.data.packed_source import packed_splits
from ssl_jax.data.parquet_source import has_images, parquet_splits
from ssl_jax.data.sources import Source, Subset
from ssl_jax.data.tar_source import tar_splits
from ssl_jax.data.tfds_source import tfds
from ssl_jax.data.window_source import Windows

WHAT = (
    "a folder of images; a list, .csv or .parquet; arrays, .npy, .npz, .h5 or .zarr; records, .tar, .parquet or "
    ".array_record; a folder that ssl_jax pack made"
)


@dataclasses.dataclass(frozen=True)
class Kind:
    """Files that hold a data set. `matches`: their whole names. `open`: (name, channels) -> {split: its images}.
    `remedy`: what to do for a split that is missing."""

    matches: str
    open: Callable[[str, int | None], dict[str, Source]]
    remedy: str


KINDS = (
    Kind(r".+\.csv", list_splits, REMEDY),
    Kind(r".+\.parquet", lambda text, channels: _parquet(text)(text, channels), f"{REMEDY}; {shards.REMEDY}"),
    Kind(array_files.FILES.pattern, lambda text, channels: array_splits(text), array_files.REMEDY),
    Kind(r".+\.tar", tar_splits, shards.REMEDY),
    Kind(r".+\.(array_record|arrayrecord|arecord)(-.+)?", array_record_splits, shards.REMEDY),
)

PACKED = Kind("", packed_splits, "pack a data set that has that split")  # a folder that `ssl_jax pack` made


def load(
    name: str,
    *,
    split: str = "train",
    path: str | None = None,
    channels: int | None = 3,
    bands: Sequence[int] = (),
    pages: str = "",
    window: int = 0,
) -> Source:
    """The images of one split.

    Args:
      name: of a TFDS data set ("cifar10", "imagenet2012", ...), which is downloaded and prepared if it is not yet; or
        "folder", for images of your own. "fashion_mnist" is read from Debian's package if that is installed and TFDS
        has not prepared it. "emoji_google", "emoji_twitter", "synthetic_emoji_google" and
        "synthetic_emoji_twitter": see `ssl_jax.data.emoji_source` and `ssl_jax.data.synthetic`.
      split: for a TFDS data set, TFDS's own, with its slices ("train[:10%]"); for a folder see `ssl_jax.data.folders`.
        Other images of your own are "train" if they have no splits.
      path: the folder, or another of what `open_data` takes. For a TFDS data set, where TFDS keeps its data, if not in
        its usual place; the same for packages of emoji.
      channels: 1 (gray) and 3 (RGB) convert photos as they are read; any other number must be the images' own; None: as
        the images are. Arrays, synthetic images and images of one file a band are not converted.
      bands: indices of the bands to keep, in this order; (): all.
      pages: of a folder, see `ssl_jax.data.folder`.
      window: side in pixels of windows, each of which counts as an image, see `ssl_jax.data.windows`; 0: whole images.
    Raises: FileNotFoundError, ValueError; the message says what to do.
    """
    kind = _kind(path or "") if name == "folder" else None
    if name == "folder" and kind is None:
        return _parts(folder(path or "", split=split, channels=channels, bands=bands, pages=pages), (), window)
    _check_pages(pages, path or name)
    read = None if bands else channels
    if is_emoji(name):
        return _parts(open_emoji(name, split, path, read), bands, window)
    if kind is None:
        return _parts(tfds(name, split=split, data_dir=path, channels=read), bands, window)
    return _parts(splits.pick(kind.open(path or "", read), split, path or "", kind.remedy), bands, window)


def load_pair(
    name: str,
    *,
    train_split: str,
    test_split: str,
    path: str | None = None,
    channels: int | None = 3,
    bands: Sequence[int] = (),
    pages: str = "",
    window: int = 0,
) -> tuple[Source, Source]:
    """(training, test), with the same class names; see `load`.

    Images of your own without a split for testing are divided: a fifth of each class, the same images each time, is for
    testing; with groups, a fifth of the groups. `load` gives all images. So a backbone may have been trained on these
    test images, but never on their labels.
    """
    options: dict[str, Any] = dict(channels=channels, bands=bands, pages=pages)
    if name != "folder":
        first, second = (
            load(name, split=split, path=path, window=window, **options) for split in (train_split, test_split)
        )
        return first, second
    kind = _kind(path or "")
    if kind is None:
        train, test = folder_pair(path or "", train_split=train_split, test_split=test_split, **options)
        return _parts(train, (), window), _parts(test, (), window)
    _check_pages(pages, path or "")
    of_split = kind.open(path or "", None if bands else channels)
    train = splits.pick(of_split, train_split, path or "", kind.remedy)
    if len(of_split) == 1:
        train, test = divided(train)
    else:
        test = splits.pick(of_split, test_split, path or "", kind.remedy)
    return _parts(train, bands, window), _parts(test, bands, window)


def _check_pages(pages: str, what: str) -> None:
    if pages:
        raise ValueError(f"pages={pages!r} is for a folder of image files, and {what!r} is none")


def _parts(source: Source, bands: Sequence[int], window: int) -> Source:
    """Some bands of the images, and windows of them."""
    source = Bands(source, bands) if bands else source
    return Windows(source, window) if window else source


def divided(source: Source, *, test_share: float = splits.TEST_SHARE, salt: str = "") -> tuple[Source, Source]:
    """(training, test): a share of each class, or of its groups, is for testing. See `splits.divide`."""
    names = [source.image_name(index) for index in range(len(source))]
    classes = [-1] * len(names) if source.labels is None else source.labels.tolist()
    groups = None if source.groups is None else source.groups.tolist()
    train, test = splits.divide(names, classes, groups, share=test_share, salt=salt)
    return Subset(source, np.array(train)), Subset(source, np.array(test))


def open_data(
    text: str,
    *,
    split: str = "train",
    channels: int | None = 3,
    bands: Sequence[int] = (),
    pages: str = "",
    window: int = 0,
) -> Source:
    """The images that the DATA of a command means: a path or a TFDS name.

    Args:
      text: a folder at any depth; a list, see `ssl_jax.data.lists`; arrays, see `ssl_jax.data.array_files`; tars of
        WebDataset, Parquet of Hugging Face's `datasets` or ArrayRecord, one file or many, see `ssl_jax.data.shards`; or
        the name of a TFDS data set or of emoji. docs/data.md has examples.
      split, channels, bands, pages, window: see `load`.
    Raises: FileNotFoundError, ValueError; the message says what to do.
    """
    options: dict[str, Any] = dict(split=split, channels=channels, bands=bands, pages=pages, window=window)
    if is_path(text):
        return load("folder", path=text, **options)
    with contextlib.nullcontext() if is_emoji(text) else _no_folder(text):
        return load(text, **options)


def open_images(
    text: str,
    *,
    split: str = "train",
    channels: int | None = 3,
    bands: Sequence[int] = (),
    pages: str = "",
    window: int = 0,
) -> Source:
    """As `open_data`, but `text` may also be one image file, of any format that a folder may hold."""
    path = paths.expanded(paths.path(text))
    if any(re.fullmatch(kind.matches, text) for kind in KINDS) or not path.is_file() or table.of_file(path) is None:
        return open_data(text, split=split, channels=channels, bands=bands, pages=pages, window=window)
    return _parts(image_file(path, channels=channels, bands=bands, pages=pages), (), window)


def open_pair(
    text: str,
    *,
    train_split: str = "train",
    test_split: str = "test",
    channels: int | None = 3,
    bands: Sequence[int] = (),
    pages: str = "",
    window: int = 0,
) -> tuple[Source, Source]:
    """(training, test) of what `open_data` takes. What has no test split is divided, see `load_pair`."""
    options: dict[str, Any] = dict(train_split=train_split, test_split=test_split, channels=channels)
    options |= dict(bands=bands, pages=pages, window=window)
    if is_path(text):
        return load_pair("folder", path=text, **options)
    with contextlib.nullcontext() if is_emoji(text) else _no_folder(text):
        return load_pair(text, **options)


def open_splits(text: str, channels: int | None) -> dict[str, Source]:
    """Split -> its images: "train", and those for testing that there are. What `open_data` takes, opened once.

    Raises: as `open_data`, also where there is no "train".
    """
    if not is_path(text):
        found = {"train": open_data(text, channels=channels)}
        for name in splits.TEST_NAMES:
            with contextlib.suppress(ValueError, FileNotFoundError):  # a data set need not have every split
                found[name] = open_data(text, split=name, channels=channels)
        return found
    kind = _kind(text)
    found = folder_splits(text, channels) if kind is None else kind.open(text, channels)
    first = splits.pick(found, "train", text, kind.remedy if kind else folders.REMEDY)
    return {"train": first} | {name: found[name] for name in splits.TEST_NAMES if name in found}


def is_path(text: str) -> bool:
    """Whether DATA is a path; else it is the name of a TFDS data set, or of emoji."""
    if paths.is_address(text) or text.startswith((".", "~", os.sep)):
        return True
    return bool(_kind(text)) or os.path.exists(text)


def _kind(text: str) -> Kind | None:
    """The kind of files; None for a folder of images and for a name. Raises: ValueError for a file of no kind, and for
    images that are packed in part."""
    path = paths.expanded(paths.path(text))
    if text and packed_index.is_packed(path):
        return PACKED
    kind = next((kind for kind in KINDS if re.fullmatch(kind.matches, text)), None)
    if kind is None and path.is_file():
        raise ValueError(f"{text!r} is a file of another kind than is read: {WHAT}")
    return kind


def _parquet(text: str) -> Callable[[str, int | None], dict[str, Source]]:
    """What opens Parquet files: they hold images, or name them."""
    first = shards.expand(text)[0]
    return parquet_splits if has_images(first) else list_splits


@contextlib.contextmanager
def _no_folder(text: str) -> Generator[None]:
    """Raises a ValueError of its context again; the new message adds that `text` is no folder either."""
    try:
        yield
    except ValueError as error:
        cause = str(error).partition("\nThe builder name string")[0]  # TFDS goes on with its whole grammar of names
        where = f"there is no folder {text!r} (looked from {os.getcwd()})"
        raise ValueError(f"{where}, and TFDS cannot open it as a name: {cause}") from error

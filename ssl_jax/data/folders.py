"""The image files of a folder, their splits and their classes.

    photos/one.jpg  photos/2024/two.png             a split "train", no labels
    photos/cat/one.jpg  photos/dog/old/two.png      a split "train"; the folders below `photos` are the classes
    photos/train/cat/...  photos/val/cat/...        splits "train" and "val", with classes

A split for testing is called test, validation or val.
"""

import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32
from tqdm import tqdm

from ssl_jax import paths
from ssl_jax.data import splits as by_name
from ssl_jax.data.formats import table
from ssl_jax.data.splits import TEST_NAMES
from ssl_jax.paths import AnyPath

MOST_TOLD = 10  # endings in a warning
REMEDY = "for a split of its own, put the images into folders train/ and test/"


class Split(NamedTuple):
    """`files`: relative to the folder, sorted. `classes`: one for each file, None for a file in no class's folder."""

    files: list[str]
    classes: list[str | None]


def find_splits(root: AnyPath) -> dict[str, Split]:
    """{"train": split}, with "test", "validation" and "val" if the folder has them.

    Each folder is read once, even if links lead to it again. Names that begin with a dot are left out.

    A warning counts the files that are not read, by their endings.

    Raises: FileNotFoundError if there is no `root`; ValueError if it is no folder or has no images.
    """
    if not root.exists():
        raise FileNotFoundError(f"there is no folder {str(root)!r}{paths.looked_from(root)}")
    if not root.is_dir():
        raise ValueError(f"{str(root)!r} is a file; give the folder that holds the images")
    listed = paths.files_below(root) if paths.is_remote(root) else None  # in a store, all at once
    if listed is None:
        folders = [entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    else:
        folders = sorted({name.split("/")[0] for name in listed if "/" in name and not name.startswith(".")})
    named = [name for name in ("train", *TEST_NAMES) if name in folders]
    # A lone train/ is a split, too. Beside other folders it is a class, of vehicles for example.
    others: Counter[str] = Counter()  # files that are not read: their ending, and what would read them
    if "train" in named and (len(named) > 1 or len(folders) == 1):
        splits = {name: _list_split(root, name, others, listed) for name in named}
    else:
        splits = {"train": _list_split(root, "", others, listed)}
    if not any(split.files for split in splits.values()):
        there = f"only {_told(others)}" if others else "put files there"
        raise ValueError(
            f"there are no images in {str(root)!r}, {there}; what is read ends in {', '.join(table.ENDINGS)}"
        )
    if others:
        logging.warning("not read in %s: %s", root, _told(others))
    return splits


def _told(others: Counter[str]) -> str:
    """The most frequent first: "1,200 .dcm (reading DICOM needs pydicom: ...), 3 .txt"."""
    parts = [f"{count:,} {what}" for what, count in sorted(others.items(), key=lambda item: (-item[1], item[0]))]
    rest = [f"{len(parts) - MOST_TOLD} other endings"] if len(parts) > MOST_TOLD else []
    return ", ".join([*parts[:MOST_TOLD], *rest])


def _list_split(root: AnyPath, below: str, others: Counter[str], listed: Sequence[str] | None) -> Split:
    """listed: all files of the root in a store; None on a disk."""
    files = _on_disk(root, below, others) if listed is None else _in_store(root, below, others, listed)
    files.sort()
    depth = 1 if below else 0
    return Split(files, [_class(file, depth) for file in files])


def _in_store(root: AnyPath, below: str, others: Counter[str], listed: Sequence[str]) -> list[str]:
    inside = [name for name in listed if name.startswith(f"{below}/" if below else "")]
    shown = [name for name in inside if not any(part.startswith(".") for part in name.split("/"))]
    return [name for name in shown if _is_read(root / name, others)]


def _on_disk(root: AnyPath, below: str, others: Counter[str]) -> list[str]:
    files: list[str] = []
    seen: set[str] = set()
    waiting = [(os.path.join(root, below), f"{below}/" if below else "")]  # folders, and what begins their files' names
    with tqdm(desc=f"listing {root / below}", unit=" images", delay=1) as progress:
        while waiting:
            folder, prefix = waiting.pop()
            real = os.path.realpath(folder)
            if real in seen:
                continue
            seen.add(real)
            below_it: list[str] = []
            for entry in _entries(folder):
                if _is_folder(entry):
                    below_it.append(entry.name)
                elif _is_read(entry, others):
                    files.append(prefix + entry.name)
                    progress.update()
            waiting += [(os.path.join(folder, name), f"{prefix}{name}/") for name in sorted(below_it, reverse=True)]
    return files


def _class(file: str, depth: int) -> str | None:
    """The folder at a depth of the path; None for a file that lies above. One string for all files of a class."""
    parts = file.split("/", depth + 1)
    return sys.intern(parts[depth]) if len(parts) > depth + 1 else None


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """One by one, as a folder may hold millions. Names that begin with a dot are left out."""
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        logging.warning("left out %s: %s", error.filename or folder, error.strerror)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_read(file: os.DirEntry[str] | AnyPath, others: Counter[str]) -> bool:
    form = table.of_name(file.name) or table.of_file(paths.path(os.fspath(file)))
    if form is not None and form.available:
        return True
    what = table.ending(file.name) or "without an ending"
    others[f"{what} ({form.remedy})" if form else what] += 1
    return False


def pick(splits: dict[str, Split], name: str) -> Split:
    """The split of this name. Raises: ValueError if there is none, or if it has no images."""
    found = by_name.pick(splits, name, "the folder", REMEDY)
    if not found.files:
        raise ValueError(f"the split {name!r} of the folder has no images")
    return found


def class_names(splits: Iterable[Split]) -> tuple[str, ...]:
    """The class names of all splits, sorted; () for fewer than two: a lone folder says nothing about its images."""
    names = sorted({name for split in splits for name in split.classes if name is not None})
    return tuple(names) if len(names) > 1 else ()


def labels(split: Split, names: tuple[str, ...]) -> Int32[np.ndarray, " images"] | None:
    """Indices into `names`, -1 for a file without a class; None without names."""
    return by_name.indices(split.classes, names)


def divide(split: Split) -> tuple[Split, Split]:
    """(training, test): a fifth of each class, chosen by a hash of the file's name, is for testing.

    Raises: ValueError if no class has two images.
    """
    train, test = by_name.divide(split.files, split.classes)
    return _part(split, train), _part(split, test)


def _part(split: Split, positions: list[int]) -> Split:
    return Split([split.files[k] for k in positions], [split.classes[k] for k in positions])

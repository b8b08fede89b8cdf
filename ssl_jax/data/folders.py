"""The image files of a folder, their splits and their classes.

    photos/one.jpg  photos/2024/two.png             a split "train", no labels
    photos/cat/one.jpg  photos/dog/old/two.png      a split "train"; the folders below `photos` are the classes
    photos/train/cat/...  photos/val/cat/...        splits "train" and "val", with classes

A split for testing is called test, validation or val.
"""

import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32
from tqdm import tqdm

from ssl_jax.data.decode import EXTENSIONS

TEST_NAMES = ("test", "validation", "val")  # one stands in for another that is missing
TEST_SHARE = 0.2


class Split(NamedTuple):
    """`files`: relative to the folder, sorted. `classes`: one for each file, None for a file in no class's folder."""

    files: list[str]
    classes: list[str | None]


def find_splits(root: Path) -> dict[str, Split]:
    """{"train": split}, with "test", "validation" and "val" if the folder has them.

    Each folder is read once, even if links lead to it again. Names that begin with a dot are left out.

    Raises: FileNotFoundError if there is no `root`; ValueError if it is no folder or has no images.
    """
    if not root.exists():
        raise FileNotFoundError(f"there is no folder {str(root)!r} (looked from {Path.cwd()})")
    if not root.is_dir():
        raise ValueError(f"{str(root)!r} is a file; give the folder that holds the images")
    folders = [entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    named = [name for name in ("train", *TEST_NAMES) if name in folders]
    # A lone train/ is a split, too. Beside other folders it is a class, of vehicles for example.
    if "train" in named and (len(named) > 1 or len(folders) == 1):
        splits = {name: _list_split(root, name) for name in named}
    else:
        splits = {"train": _list_split(root, "")}
    if not any(split.files for split in splits.values()):
        raise ValueError(f"there are no images in {str(root)!r}; put files there that end in {', '.join(EXTENSIONS)}")
    return splits


def _list_split(root: Path, below: str) -> Split:
    files, seen = [], set()
    with tqdm(desc=f"listing {root / below}", unit=" images", delay=1) as progress:
        for directory, folders, names in os.walk(root / below, onerror=_warn, followlinks=True):
            real = os.path.realpath(directory)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            images = [name for name in names if name.lower().endswith(EXTENSIONS) and not name.startswith(".")]
            prefix = Path(directory).relative_to(root)
            files.extend((prefix / name).as_posix() for name in images)
            progress.update(len(images))
    files.sort()
    depth = 1 if below else 0
    classes = [parts[depth] if len(parts) > depth + 1 else None for parts in (file.split("/") for file in files)]
    return Split(files, classes)


def _warn(error: OSError) -> None:
    logging.warning("left out %s: %s", error.filename, error.strerror)


def pick(splits: dict[str, Split], name: str) -> Split:
    """The split of this name. Raises: ValueError if there is none, or if it has no images."""
    names = [name, *TEST_NAMES] if name in TEST_NAMES else [name]
    found = next((splits[name] for name in names if name in splits), None)
    if found is None:
        raise ValueError(
            f"the folder has no split {name!r}, only {', '.join(splits)}; for a split of its own, "
            "put the images into folders train/ and test/"
        )
    if not found.files:
        raise ValueError(f"the split {name!r} of the folder has no images")
    return found


def class_names(splits: Iterable[Split]) -> tuple[str, ...]:
    """The class names of all splits, sorted; () for fewer than two: a lone folder says nothing about its images."""
    names = sorted({name for split in splits for name in split.classes if name is not None})
    return tuple(names) if len(names) > 1 else ()


def labels(split: Split, names: tuple[str, ...]) -> Int32[np.ndarray, " images"] | None:
    """Indices into `names`, -1 for a file without a class; None without names."""
    if not names:
        return None
    index: dict[str | None, int] = {name: k for k, name in enumerate(names)}
    return np.array([index.get(name, -1) for name in split.classes], np.int32)


def divide(split: Split) -> tuple[Split, Split]:
    """(training, test): a fifth of each class, chosen by a hash of the file's name, is for testing.

    Raises: ValueError for fewer than two images.
    """
    of_class = defaultdict(list)
    for position, name in enumerate(split.classes):
        of_class[name].append(position)
    test = set()
    for positions in of_class.values():
        positions.sort(key=lambda position: hashlib.sha256(os.fsencode(split.files[position])).digest())
        count = round(TEST_SHARE * len(positions))
        test.update(positions[: max(count, 1) if len(positions) > 1 else 0])
    if not test:
        raise ValueError(f"{len(split.files)} image cannot be divided for evaluation; it takes two of a class at least")
    return _part(split, [k for k in range(len(split.files)) if k not in test]), _part(split, sorted(test))


def _part(split: Split, positions: list[int]) -> Split:
    return Split([split.files[k] for k in positions], [split.classes[k] for k in positions])

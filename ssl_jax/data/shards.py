"""The files that a name with wildcards means, and the splits that their names say.

photos-{000..010}.tar        photos-000.tar to photos-010.tar
photos-*.tar                 all that there are
data/*.parquet               data/train-00000-of-00002.parquet and so on are "train", data/test-... are "test"
"""

import functools
import glob
import itertools
import re
from collections.abc import Iterable, Iterator

from ssl_jax import paths
from ssl_jax.data.splits import TEST_NAMES
from ssl_jax.paths import AnyPath

REMEDY = "shards of a split for testing have the word test, validation or val in their names"


def expand(text: str) -> list[AnyPath]:
    """The files, sorted: {000..010} counts, {a,b} lists, *, ? and [...] match the names of files.

    Raises: FileNotFoundError for a file that is not there, or a pattern without any.
    """
    files: list[str] = []
    for name in _braces(str(paths.expanded(paths.path(text)))):
        path = paths.path(name)
        matching = paths.glob if paths.is_remote(path) else functools.partial(glob.glob, recursive=True)
        found = [name] if path.exists() else matching(name)
        if not found:
            raise FileNotFoundError(f"there is no file {name!r}{paths.looked_from(path)}")
        files += found
    return [paths.path(name) for name in sorted(set(files))]


def _braces(text: str) -> Iterator[str]:
    match = re.search(r"\{([^{}]*)\}", text)
    if match is None:
        yield text
        return
    if span := re.fullmatch(r"([0-9]+)\.\.([0-9]+)", match[1]):
        first, last = span.groups()
        options: Iterable[str] = (f"{k:0{len(first)}d}" for k in range(int(first), int(last) + 1))
    else:
        options = match[1].split(",")
    for option in options:
        yield from _braces(text[: match.start()] + option + text[match.end() :])


def by_split(files: Iterable[AnyPath]) -> dict[str, list[AnyPath]]:
    """Split -> its files. A file is of the split for testing whose name is a word of its own name, or the name of its
    folder; of "train" otherwise. Files of a single split are "train"."""
    found = {split: list(of) for split, of in itertools.groupby(sorted(files, key=_split), _split)}
    return found if len(found) > 1 else {"train": next(iter(found.values()))}


def _split(file: AnyPath) -> str:
    words = re.split(r"[^a-z]+", file.name.lower())
    if "train" in words:
        return "train"
    return next((name for name in TEST_NAMES if name in (*words, file.parent.name)), "train")

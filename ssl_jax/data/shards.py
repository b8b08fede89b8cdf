"""The files that a name with wildcards means, and the splits that their names say.

photos-{000..010}.tar        photos-000.tar to photos-010.tar
photos-*.tar                 all that there are
data/*.parquet               data/train-00000-of-00002.parquet and so on are "train", data/test-... are "test"
"""

import glob
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ssl_jax.data.splits import TEST_NAMES

REMEDY = "shards of a split for testing have the word test, validation or val in their names"


def expand(text: str) -> list[Path]:
    """The files, sorted: {000..010} counts, {a,b} lists, *, ? and [...] match the names of files.

    Raises: FileNotFoundError for a file that is not there, or a pattern without any.
    """
    files: list[str] = []
    for name in _braces(str(Path(text).expanduser())):
        found = [name] if Path(name).exists() else glob.glob(name, recursive=True)
        if not found:
            raise FileNotFoundError(f"there is no file {name!r} (looked from {Path.cwd()})")
        files += found
    return [Path(name) for name in sorted(set(files))]


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


def by_split(files: Iterable[Path]) -> dict[str, list[Path]]:
    """Split -> its files. A file is of the split for testing whose name is a word of its own name, or the name of its
    folder; of "train" otherwise. Files of a single split are "train"."""
    found = {split: list(of) for split, of in itertools.groupby(sorted(files, key=_split), _split)}
    return found if len(found) > 1 else {"train": next(iter(found.values()))}


def _split(file: Path) -> str:
    words = re.split(r"[^a-z]+", file.name.lower())
    if "train" in words:
        return "train"
    return next((name for name in TEST_NAMES if name in (*words, file.parent.name)), "train")

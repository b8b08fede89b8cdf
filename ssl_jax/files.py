"""Files that are replaced whole or not at all, and errors of the disk that say which file they befell."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of `path` once it is on the disk.

    After an error, or a kill, `path` is what it was; after an error nothing else is left either.
    Raises: OSError, with `path` as its filename.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with named_errors(path):
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)  # it would take the room that may be lacking
        raise


@contextlib.contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Raises an OSError of its context, of the same kind, with `path` as its filename: that of a write has none."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error

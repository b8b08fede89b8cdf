"""Files that are replaced whole or not at all, and disk errors that name their file."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

from ssl_jax import config as configs

R = TypeVar("R")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to. It replaces `path` once it is on the disk.

    After an error or a kill, `path` is as it was before. After an error, the partial file is removed, too.
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
            partial.unlink(missing_ok=True)  # it takes room, and the disk may be full
        raise


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """An empty directory to write files to. It becomes `path`, which is missing or empty, once they are on the disk.

    After an error or a kill, `path` is as it was before. After an error, the partial directory is removed, too.
    Raises: OSError, with a filename.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with named_errors(path):
            shutil.rmtree(partial, ignore_errors=True)  # of a start that was killed
            partial.mkdir()
            yield partial
            for file in partial.iterdir():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
            partial.replace(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextlib.contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Raises an OSError of its context again, with `path` as its filename: the OSError of a write has none."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def write(path: Path, text: str) -> None:
    """Writes the file whole or not at all; see `replacing`."""
    with replacing(path) as file:
        file.write(text.encode())


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a .npz whole or not at all; see `replacing`."""
    with replacing(path) as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]  no array is called allow_pickle


def load(path: Path, parse: Callable[[str], R]) -> R:
    try:
        return parse(path.read_text())
    except (ValueError, TypeError, RecursionError) as error:
        raise configs.ConfigError(
            f"{path} is damaged ({error}), so the run there cannot be identified; put back a copy of "
            "the file, or move it away: ssl_jax train with the config of that run then writes it "
            "again and goes on"
        ) from error


def digest(path: Path) -> str:
    """SHA-256 of the file's bytes, in hexadecimal. Raises: OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

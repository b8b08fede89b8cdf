"""Files that are replaced whole or not at all, and disk errors that name their file.

On a disk, a file is written beside its place, brought to the disk, and renamed. In an object store it is one upload:
others see the old file until it has ended.
"""

import contextlib
import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

from ssl_jax import config as configs
from ssl_jax import paths
from ssl_jax.paths import AnyPath, StorePath

R = TypeVar("R")


@contextlib.contextmanager
def replacing(path: AnyPath) -> Iterator[BinaryIO]:
    """A file to write to. It replaces `path` once it is on the disk, or in the store.

    After an error or a kill, `path` is as it was before. After an error, the partial file is removed, too.
    Raises: OSError, with `path` as its filename; StoreError.
    """
    if isinstance(path, StorePath):
        content = io.BytesIO()
        yield content
        paths.upload(path, content.getvalue())
        return
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
def new_directory(path: AnyPath) -> Iterator[Path]:
    """An empty directory to write files to. It becomes `path`, which is missing or empty, once they are on the disk.

    After an error or a kill, `path` is as it was before. After an error, the partial directory is removed, too. In a
    store the files are written one after another, so a kill may leave the first of them.
    Raises: OSError, with a filename; StoreError.
    """
    if isinstance(path, StorePath):
        with tempfile.TemporaryDirectory(prefix="ssl_jax-") as folder:
            yield Path(folder)
            paths.upload_folder(Path(folder), path)
        return
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
def named_errors(path: AnyPath) -> Iterator[None]:
    """Raises an OSError of its context again, with `path` as its filename: the OSError of a write has none."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def write(path: AnyPath, text: str) -> None:
    """Writes the file whole or not at all; see `replacing`."""
    with replacing(path) as file:
        file.write(text.encode())


def write_arrays(path: AnyPath, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a .npz whole or not at all; see `replacing`."""
    with replacing(path) as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]  no array is called allow_pickle


def load(path: AnyPath, parse: Callable[[str], R]) -> R:
    try:
        return parse(paths.read_bytes(path).decode())
    except (ValueError, TypeError, RecursionError) as error:
        raise configs.ConfigError(
            f"{path} is damaged ({error}), so the run there cannot be identified; put back a copy of "
            "the file, or move it away: ssl_jax train with the config of that run then writes it "
            "again and goes on"
        ) from error


def digest(path: AnyPath) -> str:
    """SHA-256 of the file's bytes, in hexadecimal. Raises: OSError, StoreError."""
    if isinstance(path, StorePath):
        found = hashlib.sha256()
        for part in paths.parts(path):
            found.update(part)
        return found.hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

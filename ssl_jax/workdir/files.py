"""Files that are replaced whole or not at all, and disk errors that name their file."""

import contextlib
import os
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
            f"{path} is damaged ({error}), so what ran there cannot be told; put back a copy of it, or move it away: "
            "ssl_jax train with the config of that run writes it again and goes on"
        ) from error

"""A cache of features on disk. Its key holds all that the features depend on."""

import dataclasses
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from ssl_jax import paths
from ssl_jax.paths import AnyPath, StorePath

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Key:
    """All that features depend on.

    backbone: `checksum` of its variables.
    architecture: the name and options that models.create takes, in types that JSON has.
    data, split, images: the data set's name, its split, and how many images it has. Files that were changed in place
      are not noticed: then delete the cache's folder.
    preprocessing: all else that was done, in types that JSON has: size, channels, mean, std, which features
      ("patches"), dtype.
    """

    backbone: str
    architecture: Mapping[str, Any]
    data: str
    split: str
    images: int
    preprocessing: Mapping[str, Any]


def checksum(variables: Any) -> str:
    """SHA-256 of all arrays of a tree with their paths, dtypes and shapes. Two trees have the same one only if they are
    equal."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
        array = np.asarray(leaf)
        # Path, dtype and shape come first and fix the array's length, so no two lists of arrays give the same bytes.
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"")
    return digest.hexdigest()


def cached(directory: str | os.PathLike, key: Key, make: Callable[[], Arrays]) -> Arrays:
    """The arrays of this key: read from `directory` if they are there, otherwise made by `make` and written there.

    A file is written whole or not at all. It holds its arrays' checksum: a damaged file is made again.

    Args:
      directory: created if it does not exist.
      make: () -> arrays by name, such as {"features", "labels", "index"}, of any dtype that safetensors
        has (float16, int32).
    Warns: RuntimeWarning for a damaged file.
    """
    text = json.dumps(dataclasses.asdict(key), sort_keys=True)
    path = paths.path(directory) / f"{hashlib.sha256(text.encode()).hexdigest()}.safetensors"
    if path.exists():
        try:
            return _read(path)
        except (safetensors.SafetensorError, ValueError) as error:
            warnings.warn(f"{path} is damaged ({error}); its features are computed again", RuntimeWarning, stacklevel=2)
    arrays = {name: np.ascontiguousarray(array) for name, array in make().items()}
    said = {"key": text, "checksum": checksum(arrays)}
    if isinstance(path, StorePath):
        paths.upload(path, safetensors.numpy.save(arrays, said))
        return arrays
    path.parent.mkdir(parents=True, exist_ok=True)
    # A unique name, as several programs may make the same features.
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    os.close(handle)
    try:
        safetensors.numpy.save_file(arrays, part, said)
        os.replace(part, path)
    finally:
        paths.remove(Path(part))
    return arrays


def _read(path: AnyPath) -> Arrays:
    """The arrays in a file. Raises: SafetensorError, ValueError for a file that is not as it was written."""
    # The library compares the sizes in the header with the file's size before it returns any array.
    with paths.local(path) as copy, safetensors.safe_open(copy, framework="numpy") as file:
        written = (file.metadata() or {}).get("checksum")
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
    if checksum(arrays) != written:
        raise ValueError("its arrays are not those that were written")
    return arrays

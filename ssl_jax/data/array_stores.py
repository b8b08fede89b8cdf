"""Files of arrays, opened: name -> array, which is read when it is indexed."""

# pyright: reportMissingTypeStubs=false

import contextlib
import math
import zipfile
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, cast

import numpy as np

from ssl_jax import paths
from ssl_jax.data.formats.npy import read_header
from ssl_jax.paths import AnyPath, StorePath


@contextlib.contextmanager
def readable(path: AnyPath, ending: str) -> Generator[None]:
    """Raises: ValueError that names the file if its library is missing or cannot read it."""
    try:
        yield
    except ImportError as error:
        package, extra = NEEDS[ending]
        raise ValueError(f"reading {path.name} needs {package}: pip install 'ssl_jax[{extra}]'") from error
    except (OSError, EOFError, KeyError, RuntimeError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged, or no file of arrays: {error}; write it again") from error


class StoredRows:
    """An array of a file in an object store. The bytes of the rows that are asked for are fetched.

    Args:
      start: position of its first value in the file.
    """

    def __init__(self, path: StorePath, dtype: np.dtype, start: int, shape: tuple[int, ...]):
        self._path, self._start, self.dtype, self.shape = path, start, dtype, shape
        self._row_bytes = dtype.itemsize * math.prod(shape[1:])

    def __getitem__(self, key: Any) -> np.ndarray:
        """key: the index of a row, or a tuple that begins with one; anything else fetches the whole array."""
        parts: tuple[Any, ...] = cast("tuple[Any, ...]", key) if isinstance(key, tuple) and key else (cast(Any, key),)
        if not isinstance(parts[0], (int, np.integer)):
            return self._rows(0, self.shape[0])[key]
        row = range(self.shape[0])[parts[0]]
        return self._rows(row, row + 1)[0][parts[1:]]

    def _rows(self, first: int, stop: int) -> np.ndarray:
        begin, end = (self._start + row * self._row_bytes for row in (first, stop))
        data = paths.read_range(self._path, begin, end)
        return np.frombuffer(data, self.dtype).reshape(stop - first, *self.shape[1:])


def _array_at(path: AnyPath, file: Any) -> np.ndarray | StoredRows | None:
    """The array whose header the open file is at; None for one without values, or in a store in Fortran's order."""
    shape, fortran, dtype = read_header(file)
    if not (shape and all(shape)):
        return None
    if isinstance(path, StorePath):
        return None if fortran else StoredRows(path, dtype, file.tell(), shape)
    return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")


def _open_npy(path: AnyPath) -> Mapping[str, Any]:
    if not isinstance(path, StorePath):
        return {"images": np.lib.format.open_memmap(path, mode="r")}
    with paths.seekable(path) as file:
        found = _array_at(path, file)
    return {"images": np.load(paths.opened(path), allow_pickle=False) if found is None else found}


class _Npz(Mapping[str, Any]):
    """Arrays of an .npz. Those that `numpy.savez` wrote are memory-mapped, or fetched by rows from a store; compressed
    ones are read whole."""

    def __init__(self, path: AnyPath):
        self._path = path
        with paths.seekable(path) as file, zipfile.ZipFile(file) as archive:
            self._members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, name: str) -> np.ndarray | StoredRows:
        info = self._members[name]
        if info.compress_type == zipfile.ZIP_STORED:
            with paths.seekable(self._path) as file:
                file.seek(info.header_offset + 26)
                file.seek(sum(np.frombuffer(file.read(4), "<u2").tolist()), 1)  # past the member's name and extra field
                found = _array_at(self._path, file)
                if found is not None:
                    return found
        with paths.seekable(self._path) as file, zipfile.ZipFile(file) as archive, archive.open(info) as member:
            return np.lib.format.read_array(member, allow_pickle=False)


def _open_hdf5(path: AnyPath) -> Any:
    import h5py

    return h5py.File(paths.seekable(path) if paths.is_remote(path) else path, "r")


def _open_zarr(path: AnyPath) -> Any:
    import zarr

    found = cast(Any, zarr.open(str(path), mode="r"))  # pyright: ignore[reportUnknownMemberType]
    single: Mapping[str, Any] = {"images": found}
    return single if isinstance(found, zarr.Array) else found


NEEDS = {"h5": ("h5py", "hdf5"), "hdf5": ("h5py", "hdf5"), "zarr": ("zarr", "zarr")}  # ending: package, extra
OPEN: dict[str, Callable[[AnyPath], Any]] = {
    "npy": _open_npy,
    "npz": _Npz,
    "h5": _open_hdf5,
    "hdf5": _open_hdf5,
    "zarr": _open_zarr,
}

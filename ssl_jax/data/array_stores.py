"""Files of arrays, opened: name -> array, which is read when it is indexed."""

# pyright: reportMissingTypeStubs=false

import contextlib
import zipfile
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from ssl_jax.data.formats.npy import read_header


@contextlib.contextmanager
def readable(path: Path, ending: str) -> Generator[None]:
    """Raises: ValueError that names the file if its library is missing or cannot read it."""
    try:
        yield
    except ImportError as error:
        package, extra = NEEDS[ending]
        raise ValueError(f"reading {path.name} needs {package}: pip install 'ssl_jax[{extra}]'") from error
    except (OSError, EOFError, KeyError, RuntimeError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged, or no file of arrays: {error}; write it again") from error


def _open_npy(path: Path) -> Mapping[str, Any]:
    return {"images": np.lib.format.open_memmap(path, mode="r")}


class _Npz(Mapping[str, Any]):
    """Arrays of an .npz. Those that `numpy.savez` wrote are memory-mapped; compressed ones are read whole."""

    def __init__(self, path: Path):
        self._path = path
        with zipfile.ZipFile(path) as archive:
            self._members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, name: str) -> np.ndarray:
        info = self._members[name]
        if info.compress_type == zipfile.ZIP_STORED:
            with self._path.open("rb") as file:
                file.seek(info.header_offset + 26)
                file.seek(sum(np.frombuffer(file.read(4), "<u2").tolist()), 1)  # past the member's name and extra field
                shape, fortran, dtype = read_header(file)
                if shape and all(shape):
                    return np.memmap(self._path, dtype, "r", file.tell(), shape, "F" if fortran else "C")
        with zipfile.ZipFile(self._path) as archive, archive.open(info) as member:
            return np.lib.format.read_array(member, allow_pickle=False)


def _open_hdf5(path: Path) -> Any:
    import h5py

    return h5py.File(path, "r")


def _open_zarr(path: Path) -> Any:
    import zarr

    found = cast(Any, zarr.open(str(path), mode="r"))  # pyright: ignore[reportUnknownMemberType]
    single: Mapping[str, Any] = {"images": found}
    return single if isinstance(found, zarr.Array) else found


NEEDS = {"h5": ("h5py", "hdf5"), "hdf5": ("h5py", "hdf5"), "zarr": ("zarr", "zarr")}  # ending: package, extra
OPEN: dict[str, Callable[[Path], Any]] = {
    "npy": _open_npy,
    "npz": _Npz,
    "h5": _open_hdf5,
    "hdf5": _open_hdf5,
    "zarr": _open_zarr,
}

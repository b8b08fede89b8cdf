"""`.npy` files of one image each, memory-mapped."""

import io
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ssl_jax.data.formats.errors import Unreadable
from ssl_jax.data.formats.stored import Opened, Stored, Window

HEADERS: dict[tuple[int, int], Callable[..., Any]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# NumPy reads a header by ast.literal_eval, which raises SystemError now and then in several threads of Python 3.11.
HEADER_LOCK = threading.Lock()


def read_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, whether Fortran's order, type) of an array that `numpy.save` wrote; the file is then at its first value.

    Raises: ValueError, EOFError, KeyError for a header that cannot be read, or for Python's objects.
    """
    with HEADER_LOCK:
        shape, fortran, dtype = HEADERS[np.lib.format.read_magic(file)](file)
    if dtype.hasobject:
        raise Unreadable("it holds Python objects, which are not loaded: they could run code")
    return shape, fortran, dtype


def _array(source: Path | bytes) -> np.ndarray:
    with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file:
        shape, fortran, dtype = read_header(file)
        start = file.tell()
    if isinstance(source, Path):
        # A map of no bytes is refused by the system.
        values = np.memmap(source, dtype, "r", start, math.prod(shape)) if math.prod(shape) else np.empty(0, dtype)
    else:
        values = np.frombuffer(source, dtype, math.prod(shape), start)
    return values.reshape(shape, order="F" if fortran else "C")


def open_file(source: Path | bytes, pages: str = "") -> Opened:
    """An array [height, width] or [height, width, bands]. Raises: Unreadable for another one."""
    array = _array(source)
    if array.ndim not in (2, 3):
        raise Unreadable(
            f"an array of shape {list(array.shape)}; one image is [height, width] or [height, width, bands], and a "
            "stack of images is read if the file itself is given as the data"
        )
    image = array[..., None] if array.ndim == 2 else array
    height, width, bands = image.shape
    if height < min(width, bands):
        raise Unreadable(
            f"an array of shape {list(array.shape)}, whose first axis is the shortest: bands come last, so save "
            f"image.transpose(1, 2, 0); if these are {bands} bands of {height} rows, save it as TIFF"
        )
    return Opened(1, lambda _: Stored((height, width, bands), image.dtype, _window(image), windowed=True))


def _window(image: np.ndarray) -> Window:
    return lambda top, left, height, width: np.array(image[top : top + height, left : left + width])

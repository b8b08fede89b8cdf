"""Windows of TIFF pages, with their values as they are stored.

A page is decoded strip by strip (or tile by tile), so that a window takes only the strips that it needs, and so that no
strip is decoded before its size is checked.
"""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from ssl_jax.data.formats import jpeg2000
from ssl_jax.data.formats.errors import Unreadable
from ssl_jax.data.formats.header import check_jpeg_end, read_header
from ssl_jax.data.formats.stored import check_size
from ssl_jax.data.threads import read_at

# Numbers of compressions. The decoders of these are told how many bytes to give:
BOUNDED = {1, 2, 3, 4, 5, 8, 32946, 32773, 34925, 50000, 34926}  # none, CCITT, LZW, Deflate, PackBits, LZMA, Zstandard
# The streams of these have a header with their size:
JPEG, JPEG2000, WEBP, PNG = {7}, {33004, 33005, 34712}, {50001, 34927}, {34933}
READ = BOUNDED | JPEG | JPEG2000 | WEBP | PNG


class Image(NamedTuple):
    """One image of a series: `indices`: at each leading axis that is not of bands."""

    series: Any
    indices: dict[str, int]


class FileBytes:
    """The bytes of a TIFF. Strips and tiles are read, not mapped: mapped pages of a file count as the process's own."""

    def __init__(self, tif: Any, source: Path | bytes):
        self._tif, self._source = tif, source

    def __len__(self) -> int:
        return len(self._source) if isinstance(self._source, bytes) else self._tif.filehandle.size

    def read(self, offset: int, count: int) -> bytes:
        if isinstance(self._source, bytes):
            return self._source[offset : offset + count]
        # Threads share the file, so its position must not matter. A closed file raises here.
        return read_at(self._tif.filehandle.fileno(), count, offset)

    def mapped(self, offset: int, count: int) -> UInt8[np.ndarray, " bytes"]:
        if isinstance(self._source, bytes):
            return np.frombuffer(self._source, np.uint8, count, offset)
        return np.memmap(self._source, np.uint8, "r", offset, (count,))


class _Frame(NamedTuple):
    """A page's strips or tiles: where they begin, their numbers of bytes, and what their JPEG streams share."""

    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    tables: bytes | None


def axis_sizes(series: Any) -> dict[str, int]:
    """{axis: its size}; of axes with one letter the second is "Q1", and so on."""
    names: list[str] = []
    for letter in series.axes:
        before = sum(name[0] == letter for name in names)
        names.append(f"{letter}{before}" if before else letter)
    return dict(zip(names, series.shape, strict=True))


def raw_window(data: FileBytes, image: Image) -> tuple[list[str], Callable[..., np.ndarray]]:
    """(axes of bands, in order; (top, left, height, width) -> values as they are stored, [height, width, bands]).

    Args:
      data: of the image's file.
    """
    series, index = image
    sizes = axis_sizes(series)
    axes, shape = list(sizes), series.shape
    kept = [axis for axis in axes if axis not in index]
    bands_by = [axis for axis in kept if axis not in "YX"]

    if series.dataoffset is not None:  # all of it in one piece, uncompressed
        count = math.prod(shape) * np.dtype(series.dtype).itemsize
        if series.dataoffset + count > len(data):
            raise Unreadable("a truncated TIFF")
        stored = data.mapped(series.dataoffset, count)
        array = stored.view(np.dtype(series.parent.byteorder + np.dtype(series.dtype).char)).reshape(shape)

        def window(top: int, left: int, height: int, width: int) -> np.ndarray:
            chosen = {"Y": slice(top, top + height), "X": slice(left, left + width), **index}
            part = array[tuple(chosen.get(axis, slice(None)) for axis in axes)]
            part = np.array(part.transpose([kept.index(axis) for axis in (*"YX", *bands_by)]))  # read from the file
            return part.reshape(*part.shape[:2], -1)

        return bands_by, window

    page = series.keyframe
    page_axes = list(page.axes)
    leading, page_shape = axes[: len(axes) - len(page_axes)], shape[len(axes) - len(page_axes) :]
    if tuple(page_shape) != tuple(page.shape) or [axis[0] for axis in axes[len(leading) :]] != page_axes:
        raise Unreadable(f"a TIFF whose pages are {list(page.shape)}, but its metadata say {series.axes} {list(shape)}")
    if len(series.pages) != math.prod(shape[: len(leading)]) or any(one is None for one in series.pages):
        raise Unreadable("a TIFF that lacks some of the pages that its metadata list")
    chosen = [[index[axis]] if axis in index else range(size) for axis, size in zip(leading, shape, strict=False)]
    numbers = [
        int(np.ravel_multi_index(place, shape[: len(leading)])) if leading else 0
        for place in itertools.product(*chosen)
    ]
    # Read now: tifffile reads these from the file when they are first asked for, which threads must not do at a time.
    frames = [_Frame(f.dataoffsets, f.databytecounts, f.jpegtables) for f in (series.pages[k] for k in numbers)]

    def window_of_pages(top: int, left: int, height: int, width: int) -> np.ndarray:
        parts = [_page_window(data, page, frame, top, left, height, width) for frame in frames]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)

    return bands_by, window_of_pages


def _page_window(data: FileBytes, page: Any, frame: _Frame, top: int, left: int, height: int, width: int) -> np.ndarray:
    """[height, width, bands] of one page, from the strips or tiles that hold the window."""
    planes, _, length, across, samples = map(int, page.shaped)
    if page.is_tiled:
        rows, columns = int(page.tilelength), int(page.tilewidth)
    else:
        rows, columns = min(int(page.rowsperstrip), length), across
    if rows < 1 or columns < 1:
        raise Unreadable(f"a TIFF with tiles of {columns} x {rows} pixels")
    check_size((rows, columns, samples), page.dtype.itemsize)
    check_size((height, width, planes * samples), page.dtype.itemsize)
    down, over = -(-length // rows), -(-across // columns)
    if min(len(frame.offsets), len(frame.counts)) < planes * down * over:
        raise Unreadable("a TIFF that lacks some of its strips or tiles")
    out = np.full((planes, height, width, samples), page.nodata, page.dtype)  # what a missing tile stands for
    wanted = itertools.product(
        range(planes),
        range(top // rows, -(-(top + height) // rows)),
        range(left // columns, -(-(left + width) // columns)),
    )
    for plane, row, column in wanted:
        number = (plane * down + row) * over + column
        encoded = _segment(data, frame.offsets[number], frame.counts[number])
        if encoded is None:
            continue
        _check_segment(page, encoded, (rows, columns, samples))
        part, _, _ = page.decode(encoded, number, jpegtables=frame.tables)
        y, x = row * rows, column * columns
        part = part[0][max(top - y, 0) : top + height - y, max(left - x, 0) : left + width - x]
        y, x = max(y - top, 0), max(x - left, 0)
        part = part[: height - y, : width - x]
        out[plane, y : y + part.shape[0], x : x + part.shape[1]] = part
    return out[0] if planes == 1 else np.moveaxis(out[..., 0], 0, 2)  # of planes each has one sample


def _segment(data: FileBytes, offset: int, count: int) -> bytes | None:
    if count == 0 or offset == 0:
        return None
    if offset + count > len(data):
        raise Unreadable("a truncated TIFF")
    return data.read(offset, count)


def _check_segment(page: Any, encoded: bytes, shape: tuple[int, int, int]) -> None:
    """Raises: Unreadable if the stream of a strip or tile [rows, columns, samples] holds more pixels than it should."""
    if page.compression in BOUNDED:
        return
    width, height, bands, _ = (jpeg2000.read_header if page.compression in JPEG2000 else read_header)(encoded)
    if width > shape[1] or height > shape[0] or bands > max(shape[2], 4):
        raise Unreadable(f"a damaged TIFF: a stream of {width} x {height} pixels in a tile of {shape[1]} x {shape[0]}")
    if page.compression in JPEG:
        check_jpeg_end(encoded)

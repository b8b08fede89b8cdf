"""NIfTI volumes as axial slices, by nibabel.

Slices go from the feet to the head, volume after volume. Within a slice, rows go from front to back and columns from
the right of the body to its left, as in DICOM's axial images.
"""

# pyright: reportUnknownMemberType=false

import gzip
import io
import logging
import math
import threading
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
from nibabel import fileslice, orientations

from ssl_jax.data.formats.errors import Unreadable
from ssl_jax.data.formats.stored import Opened, Stored, check_count, check_size, decoded_later, scaled

# The reader reports a file that cannot be decoded once, by name. nibabel would report what it corrects in headers.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL + 1)

GZIP = b"\x1f\x8b"
DEFLATE_MOST = 1032  # bytes that a byte of a compressed file can stand for, at most
HEADERS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}  # length of the header, its first number
COLORS = ("R", "G", "B", "A")
LEFT_POSTERIOR_SUPERIOR = orientations.axcodes2ornt("LPS")


def open_file(source: Path | bytes, pages: str = "") -> Opened:
    """The slices of a volume, or of each volume of a series. Raises: Unreadable; whatever nibabel raises."""
    raw: Any = source.open("rb") if isinstance(source, Path) else io.BytesIO(source)
    try:
        size = raw.seek(0, io.SEEK_END)
        raw.seek(0)
        packed = raw.read(2) == GZIP
        raw.seek(0)
        file: Any = gzip.GzipFile(fileobj=raw) if packed else raw
        volume = _Volume(file, None if packed else source, size * DEFLATE_MOST if packed else size)
    except BaseException:
        raw.close()
        raise
    return Opened(volume.count, volume.image, raw.close)


class _Volume:
    def __init__(self, file: Any, unpacked: Path | bytes | None, most_bytes: int):
        """`unpacked`: the file itself, if it is not compressed."""
        start = file.read(4)
        kind = HEADERS.get(int.from_bytes(start, "little")) or HEADERS.get(int.from_bytes(start, "big"))
        if kind is None:
            raise Unreadable("not a NIfTI file, or a damaged one")
        file.seek(0)
        header = kind.from_fileobj(file)
        if header["magic"].item()[:2] != b"n+":
            raise Unreadable("a NIfTI header whose image is another file; save both as one .nii")
        shape = header.get_data_shape()
        if min(shape, default=0) < 1 or any(side > 1 for side in shape[4:]):
            raise Unreadable(f"an array of shape {list(shape)}; a volume, or a series of volumes, is read")
        self._shape = (*shape, 1, 1, 1)[:4]
        self._dtype = cast(np.dtype, header.get_data_dtype())
        self._offset = header.get_data_offset()
        if self._dtype.names and any(name not in COLORS for name in self._dtype.names):
            raise Unreadable(f"its values are {self._dtype}; save them as numbers, or as RGB")
        if self._offset + math.prod(self._shape) * self._dtype.itemsize > most_bytes:
            raise Unreadable("a truncated NIfTI file")
        slope, intercept = header.get_slope_inter()
        self._slope = 1.0 if slope is None else float(slope)
        self._intercept = 0.0 if intercept is None else float(intercept)
        lies = orientations.io_orientation(header.get_best_affine())
        turn = cast(np.ndarray, orientations.ornt_transform(lies, LEFT_POSTERIOR_SUPERIOR))
        if np.isnan(turn).any():
            raise Unreadable("its affine matrix does not say how the volume lies")
        # Of columns, rows and slices: the axis in the file, and whether it goes the other way.
        self._axes = [int(np.flatnonzero(turn[:, 0] == axis)[0]) for axis in range(3)]
        self._reversed = [bool(turn[axis, 1] < 0) for axis in self._axes]
        self._columns, self._rows, self._slices = (self._shape[axis] for axis in self._axes)
        self.count = self._slices * self._shape[3]
        check_count(self.count)
        self._file, self._lock, self._array = file, threading.Lock(), None
        if isinstance(unpacked, Path):
            self._array = np.memmap(unpacked, self._dtype, "r", self._offset, self._shape, "F")
        elif unpacked is not None:
            values = np.frombuffer(unpacked, self._dtype, math.prod(self._shape), self._offset)
            self._array = values.reshape(self._shape, order="F")

    def image(self, k: int) -> Stored:
        volume, position = divmod(k, self._slices)
        shape = (self._rows, self._columns, len(self._dtype.names or "1"))
        dtype = self._values(np.zeros((1, 1), self._dtype)).dtype
        if self._array is not None:
            whole = self._slice(self._array[..., volume], position)

            def window(top: int, left: int, height: int, width: int) -> np.ndarray:
                return self._values(whole[top : top + height, left : left + width])

            return Stored(shape, dtype, window, windowed=True)
        return decoded_later(shape, dtype, lambda: self._values(self._slice_from_stream(position, volume)))

    def _slice(self, volume: np.ndarray, position: int) -> np.ndarray:
        """[rows, columns] of one slice of a volume in the file's order."""
        turned = volume.transpose([self._axes[1], self._axes[0], self._axes[2]])
        columns, rows, slices = (slice(None, None, -1 if back else 1) for back in self._reversed)
        return turned[rows, columns, slices][..., position]

    def _slice_from_stream(self, position: int, volume: int) -> np.ndarray:
        """As `_slice`. It reads one plane of the file at a time, so that no more is held."""
        along = self._axes[2]
        check_size((*self._shape[:2], 1), self._dtype.itemsize)
        if self._reversed[2]:
            position = self._slices - 1 - position
        if along == 2:
            thin = self._plane(position, volume)[:, :, None]
        else:
            planes = (self._plane(k, volume) for k in range(self._shape[2]))
            thin = np.stack([np.take(plane, [position], axis=along) for plane in planes], axis=2)
        return self._slice(thin, 0)

    def _plane(self, position: int, volume: int) -> np.ndarray:
        place = (slice(None), slice(None), position, volume)
        return fileslice.fileslice(
            self._file, place, self._shape, self._dtype, self._offset, order="F", lock=self._lock
        )

    def _values(self, plane: np.ndarray) -> np.ndarray:
        """[rows, columns] as stored -> [rows, columns, bands], scaled."""
        if self._dtype.names:
            return np.stack([plane[name] for name in self._dtype.names], axis=-1)
        return scaled(np.array(plane, plane.dtype.newbyteorder("="))[..., None], self._slope, self._intercept)

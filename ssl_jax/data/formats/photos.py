"""BMP, GIF, JPEG, PNG, PNM and WebP, by OpenCV: it is fast and frees Python's lock, so threads suffice.

This file handles what OpenCV does not: alpha, and the EXIF orientation of files that are not JPEG.
"""

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Shaped

from ssl_jax.data.formats.errors import Unreadable
from ssl_jax.data.formats.header import JPEG, PNG, Header, jpeg_exif, read_header
from ssl_jax.data.formats.stored import (
    STRAIGHT,
    Opened,
    arrange,
    check_bytes,
    check_size,
    decoded,
    decoded_later,
    upright,
    whole_file,
)

# The reader reports a file that cannot be decoded once, by name. OpenCV would print a message of its own for each.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

Reduce = Callable[[int, int], int]
# Numbers by which libjpeg divides the sides of an image while it decodes, at a part of the cost.
REDUCTIONS = (1, 2, 4, 8)
# OpenCV's flags. Together with IMREAD_COLOR_RGB they give color.
REDUCED = {
    1: cv2.IMREAD_GRAYSCALE,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
EXIF_ORIENTATION = 0x0112
PNG_KIND_AT, PNG_GRAY = 25, (0, 4)  # position of the byte that gives the kind of colors; gray, gray with alpha
TO_RGB = {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGBA}


def open_file(source: Path | bytes, pages: str = "") -> Opened:
    """The first image of the file; a JPEG is decoded when pixels of it are read. Raises: Unreadable."""
    data = whole_file(source)
    header = _checked_header(data)
    if data.startswith(JPEG):
        shape = (*_upright_size(data, header), 1 if header.bands == 1 else 3)
        later = decoded_later(shape, np.dtype(np.uint8), lambda: _decode(data, header, None)[0])
        return Opened(1, lambda _: later)
    image, alpha = _decode(data, header, None)
    return Opened(1, lambda _: decoded(image, alpha=alpha))


def decode(
    data: bytes, channels: int | None, bands: Sequence[int], reduce: Reduce | None = None
) -> Shaped[np.ndarray, "height width channels"]:
    """The first image of a file with the channels that are asked for, see `stored.arrange`. Raises: Unreadable.

    reduce: (height, width) -> the number that a JPEG's sides may be divided by, one of REDUCTIONS.
    """
    header = _checked_header(data)
    by = 1
    if reduce is not None and data.startswith(JPEG) and reduce(header.height, header.width) > 1:
        by = reduce(*_upright_size(data, header))  # which takes a look at the EXIF block
    image, alpha = _decode(data, header, None if bands else channels, by)
    return arrange(image, alpha, channels, bands)


def _checked_header(data: bytes) -> Header:
    if not data:
        raise Unreadable("the file is empty")
    check_bytes(len(data))
    header = read_header(data)
    check_size((header.height, header.width, header.bands), -(-header.bits // 8))
    return header


def _upright_size(data: bytes, header: Header) -> tuple[int, int]:
    """(height, width) of a JPEG, turned as its EXIF block says."""
    swapped = exif_orientation(jpeg_exif(data)) > 4
    return (header.width, header.height) if swapped else (header.height, header.width)


def _decode(data: bytes, header: Header, channels: int | None, by: int = 1) -> tuple[np.ndarray, str]:
    """([height, width, bands], RGB if it has color; kind of alpha). by: what a JPEG's sides are divided by."""
    try:
        return (_decode_jpeg(data, header, channels, by), "") if data.startswith(JPEG) else _decode_other(data)
    except cv2.error as error:  # its text has several lines; `err` is the condition that did not hold
        raise Unreadable(f"refused by OpenCV: {error.err}") from error


def _decode_jpeg(data: bytes, header: Header, channels: int | None, by: int) -> np.ndarray:
    # A JPEG has no alpha. OpenCV turns it by its EXIF orientation, and takes gray straight from the luma.
    if header.bits != 8:
        raise Unreadable(f"a JPEG of {header.bits} bits; save it as PNG or TIFF of 16 bits")
    gray = header.bands == 1 if channels not in (1, 3) else channels == 1
    flags = REDUCED[by] if gray else REDUCED[by] | cv2.IMREAD_COLOR_RGB
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None:
        raise Unreadable("a broken or truncated JPEG")
    return image.reshape(*image.shape[:2], 1 if gray else 3)


def _decode_other(data: bytes) -> tuple[np.ndarray, str]:
    image, kinds, metadata = cv2.imdecodeWithMetadata(np.frombuffer(data, np.uint8), flags=cv2.IMREAD_UNCHANGED)
    if image is None:  # pyright: ignore[reportUnnecessaryComparison]
        raise Unreadable("broken, truncated, or not an image")
    if image.ndim == 2:
        image = image[..., None]
    elif data.startswith(PNG) and data[PNG_KIND_AT] in PNG_GRAY:
        image = image[..., [0, 3]]  # OpenCV gives gray with alpha as color with alpha
    else:
        image = cv2.cvtColor(image, TO_RGB[image.shape[2]])
    for kind, block in zip(kinds, metadata, strict=True):
        if kind == cv2.IMAGE_METADATA_EXIF:
            image = upright(image, exif_orientation(np.asarray(block).tobytes()))
    return image, STRAIGHT if image.shape[2] in (2, 4) else ""


def exif_orientation(exif: bytes) -> int:
    """1 to 8, as EXIF numbers orientations; 1 (upright) if `exif`, a TIFF header and its tags, does not say."""
    exif = exif.removeprefix(b"Exif\0\0")
    endian = "<" if exif.startswith(b"II") else ">"
    try:
        (start,) = struct.unpack_from(endian + "I", exif, 4)
        (count,) = struct.unpack_from(endian + "H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(endian + "HHIH", exif, entry)
            if tag == EXIF_ORIENTATION:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass  # cut off: treated as if there were none
    return 1

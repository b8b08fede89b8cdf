"""From the bytes of an image file to uint8 pixels, whatever the file holds.

OpenCV decodes: it is fast and frees Python's lock, so threads suffice. This file handles what OpenCV does not: alpha,
16 bits, and the EXIF orientation of files that are not JPEG.
"""

import os
import struct
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from ssl_jax.data.header import JPEG, TIFF, image_size

# The reader reports a file that cannot be decoded once, by name. OpenCV would print a message of its own for each.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

EXTENSIONS = (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Of one image: 200 MB in RGB. Each thread that decodes holds one image. Only a few cameras make larger photos.
MAX_PIXELS = 2**26
MAX_BYTES = 2**28  # of a file: the size of an uncompressed image of MAX_PIXELS with alpha
JPEG_FLAGS = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR_RGB}
EXIF_ORIENTATION = 0x0112


class UndecodableImage(Exception):
    """An image that cannot be read: its `name` (a path, or data set and index) and the `reason`.

    Characters of the name that cannot be printed are escaped: a file name may hold line breaks or terminal commands.
    """

    def __init__(self, name: str, reason: str):
        self.name, self.reason = printable(name), reason
        super().__init__(f"{self.name}: {reason}")


def printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def decode_image(data: bytes, channels: int, name: str) -> UInt8[np.ndarray, "height width channels"]:
    """The first image in the file, upright: gray (channels=1) or RGB (channels=3), alpha over white.

    16-bit values are scaled to 8. Color becomes gray as 0.299 R + 0.587 G + 0.114 B, gray becomes three equal channels.

    Args:
      data: a whole file: BMP, GIF, JPEG, PNG, PNM, TIFF or WebP, of no more than MAX_BYTES and MAX_PIXELS.
      channels: 1 or 3.
      name: of the file, for the error.
    Raises: UndecodableImage for anything else, truncated files included, before it takes memory.
    """
    if not data:
        raise UndecodableImage(name, "the file is empty")
    try:
        _check_bytes(len(data))
        width, height = image_size(data)
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width} x {height} pixels; no more than {MAX_PIXELS:,} are decoded, so scale it down")
        return _decode_jpeg(data, channels) if data.startswith(JPEG) else _to_channels(_decode_any(data), channels)
    except ValueError as error:
        raise UndecodableImage(name, str(error)) from error
    except cv2.error as error:  # its text has several lines; `err` is the condition that did not hold
        raise UndecodableImage(name, f"refused by OpenCV: {error.err}") from error


def read_file(path: Path, name: str) -> bytes:
    """The whole file. Raises: UndecodableImage if it is no file, cannot be read or is larger than MAX_BYTES."""
    try:
        if not path.is_file():  # reading a pipe or a device would wait
            raise UndecodableImage(name, "a broken link" if path.is_symlink() else "gone, or not a regular file")
        _check_bytes(path.stat().st_size)
        return path.read_bytes()
    except ValueError as error:
        raise UndecodableImage(name, str(error)) from error
    except OSError as error:  # is_file raises it, too: in a folder that may be listed but not entered
        raise UndecodableImage(name, os.strerror(error.errno) if error.errno else str(error)) from error


def _check_bytes(size: int) -> None:
    if size > MAX_BYTES:
        raise ValueError(f"{size:,} bytes; no more than {MAX_BYTES:,} are read, so scale it down")


def _decode_jpeg(data: bytes, channels: int) -> UInt8[np.ndarray, "height width channels"]:
    # A JPEG has 8 bits and no alpha. OpenCV turns it by its EXIF orientation, and takes gray straight from the luma.
    image = cv2.imdecode(np.frombuffer(data, np.uint8), JPEG_FLAGS[channels])
    if image is None:
        raise ValueError("a broken or truncated JPEG")
    return image.reshape(*image.shape[:2], channels)


def _decode_any(data: bytes) -> UInt8[np.ndarray, "height width *bgr"]:
    """Gray [height, width] or BGR [height, width, 3]."""
    image, kinds, metadata = cv2.imdecodeWithMetadata(np.frombuffer(data, np.uint8), flags=cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ValueError("broken, truncated, or not an image")
    # libtiff has multiplied 8-bit colors by their alpha already.
    premultiplied = data.startswith(TIFF) and image.dtype == np.uint8
    if image.dtype == np.uint16:
        image = cv2.convertScaleAbs(
            image, alpha=1 / 257
        )  # 65535 -> 255, rounded; in NumPy it would pass through float64
    if image.dtype != np.uint8:
        raise ValueError(f"its pixels are {image.dtype}; only integers of 8 and 16 bits have a known range")
    if image.ndim == 3 and image.shape[2] == 4:
        image = _over_white(image[..., :3], image[..., 3:], premultiplied)
    for kind, block in zip(kinds, metadata, strict=True):
        if kind == cv2.IMAGE_METADATA_EXIF:
            image = _upright(image, exif_orientation(np.asarray(block).tobytes()))
    return np.ascontiguousarray(image)


def _over_white(color: np.ndarray, alpha: np.ndarray, premultiplied: bool) -> UInt8[np.ndarray, "height width 3"]:
    # uint16 holds 255 * 255; floats would take five times the image's own memory.
    alpha = alpha.astype(np.uint16)
    if premultiplied:
        return np.minimum(color + (255 - alpha), 255).astype(np.uint8)
    shown = color * alpha
    shown += 255 * (255 - alpha)
    shown += 127  # so that // rounds
    shown //= 255
    return shown.astype(np.uint8)


def _to_channels(image: np.ndarray, channels: int) -> UInt8[np.ndarray, "height width channels"]:
    """`image`: gray [height, width] or BGR [height, width, 3]."""
    if channels == 1:
        return (image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY))[..., None]
    return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB if image.ndim == 2 else cv2.COLOR_BGR2RGB)


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


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    # 1 to 4 are: as it is, mirrored, turned by 180 degrees, flipped. 5 to 8 are the same four after swapping the axes.
    transposed, turn = divmod(orientation - 1, 4)
    if transposed:
        image = image.swapaxes(0, 1)
    if turn in (1, 2):
        image = image[:, ::-1]
    if turn in (2, 3):
        image = image[::-1]
    return image


def shrink(images: np.ndarray, side: int) -> np.ndarray:
    """uint8 images [n, height, width, channels], shrunk until the larger side is at most `side`, by area averages."""
    height, width, channels = images.shape[1:]
    if max(height, width) <= side:
        return images
    scale = side / max(height, width)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    small = [cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in images]
    return np.stack(small).reshape(len(images), size[1], size[0], channels)

"""From the bytes of an image file to uint8 pixels, whatever the file holds.

OpenCV decodes: it is fast and frees Python's lock, so threads suffice. What it leaves open is settled here: alpha,
16 bits, and the EXIF orientation of files that are not JPEG.
"""

import struct

import cv2
import numpy as np
from jaxtyping import UInt8

# A file that cannot be decoded is reported once, by name, by who reads it; OpenCV would print about each again.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

EXTENSIONS = (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
JPEG, TIFF = (b"\xff\xd8",), (b"II*\0", b"MM\0*")  # how such files begin
JPEG_FLAGS = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR_RGB}
EXIF_ORIENTATION = 0x0112


class UndecodableImage(Exception):
    """An image that cannot be read: its `name` (a path, or data set and index) and the `reason`."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


def decode_image(data: bytes, channels: int, name: str) -> UInt8[np.ndarray, "height width channels"]:
    """The first image in the file, upright: gray (channels=1) or RGB (channels=3), alpha over white.

    16-bit values are scaled to 8. Color becomes gray as 0.299 R + 0.587 G + 0.114 B, gray becomes three equal channels.

    Args:
      data: a whole file, of any format that OpenCV reads.
      channels: 1 or 3.
      name: of the file, for the error.
    Raises: UndecodableImage for anything else, truncated files included.
    """
    if not data:
        raise UndecodableImage(name, "the file is empty")
    try:
        return _decode_jpeg(data, channels) if data.startswith(JPEG) else _to_channels(_decode_any(data), channels)
    except ValueError as error:
        raise UndecodableImage(name, str(error)) from error
    except cv2.error as error:  # of several lines; `err` is the condition that did not hold
        raise UndecodableImage(name, f"refused by OpenCV: {error.err}") from error


def _decode_jpeg(data: bytes, channels: int) -> UInt8[np.ndarray, "height width channels"]:
    # Never with alpha, always 8 bits: OpenCV turns it by its EXIF, and takes gray straight from the luma.
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
        image = np.rint(image / 257).astype(np.uint8)  # 65535 -> 255
    if image.dtype != np.uint8:
        raise ValueError(f"its pixels are {image.dtype}; only integers of 8 and 16 bits have a known range")
    if image.ndim == 3 and image.shape[2] == 4:
        image = _over_white(image[..., :3], image[..., 3:], premultiplied)
    for kind, block in zip(kinds, metadata, strict=True):
        if kind == cv2.IMAGE_METADATA_EXIF:
            image = _upright(image, exif_orientation(np.asarray(block).tobytes()))
    return np.ascontiguousarray(image)


def _over_white(color: np.ndarray, alpha: np.ndarray, premultiplied: bool) -> UInt8[np.ndarray, "height width 3"]:
    opacity = alpha.astype(np.float32) / 255
    shown = color.astype(np.float32) if premultiplied else color * opacity
    return np.rint(np.minimum(shown + 255 * (1 - opacity), 255)).astype(np.uint8)


def _to_channels(image: np.ndarray, channels: int) -> UInt8[np.ndarray, "height width channels"]:
    """`image`: gray [height, width] or BGR [height, width, 3]."""
    if channels == 1:
        return (image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY))[..., None]
    return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB if image.ndim == 2 else cv2.COLOR_BGR2RGB)


def exif_orientation(exif: bytes) -> int:
    """1 to 8, as EXIF numbers them; 1, upright, where `exif` (a TIFF header and its tags) does not say."""
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
        pass  # cut off: as if there were none
    return 1


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    # 1 to 8 are: as is, mirrored, turned by 180 degrees, flipped; then the same four after swapping the axes.
    transposed, turn = divmod(orientation - 1, 4)
    if transposed:
        image = image.swapaxes(0, 1)
    if turn in (1, 2):
        image = image[:, ::-1]
    if turn in (2, 3):
        image = image[::-1]
    return image

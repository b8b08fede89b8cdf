"""JPEG 2000, by imagecodecs: any number of bands, up to 16 bits."""

import struct
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np

from ssl_jax.data.formats.errors import Unreadable
from ssl_jax.data.formats.header import Header
from ssl_jax.data.formats.stored import ASSOCIATED, STRAIGHT, Opened, Stored, bits_dtype, decoded_later, whole_file

CODESTREAM = b"\xff\x4f\xff\x51"
OPACITY = {1: STRAIGHT, 2: ASSOCIATED}  # kinds of channels in a file's channel definitions


def open_file(source: Path | bytes, pages: str = "") -> Opened:
    """The image of a file. Raises: Unreadable."""
    data = whole_file(source)
    return Opened(1, lambda _: _stored(data))


def _stored(data: bytes) -> Stored:
    width, height, bands, bits = read_header(data)
    signed, alpha = _signed(data), ""
    for kind, start, end in _boxes(data, 0, len(data)):
        if kind == b"jp2h":
            alpha = _alpha(data, start, end, bands)

    def decode() -> np.ndarray:
        image = imagecodecs.jpeg2k_decode(data)
        image = image[..., None] if image.ndim == 2 else image
        if image.shape != (height, width, bands):
            raise Unreadable(f"its stream gives {list(image.shape)}, its header says {[height, width, bands]}")
        return image

    return decoded_later((height, width, bands), bits_dtype(bits, signed=signed), decode, alpha=alpha)


def read_header(data: bytes) -> Header:
    """Of a file, or a stream from another file. Raises: Unreadable."""
    start = _stream(data)
    try:
        right, bottom, left, top = struct.unpack_from(">IIII", data, start + 8)
        (bands,) = struct.unpack_from(">H", data, start + 40)
        parts = [struct.unpack_from("BBB", data, start + 42 + 3 * k) for k in range(bands)]
    except struct.error as error:
        raise Unreadable("broken or truncated in its header") from error
    if any(part[1:] != (1, 1) for part in parts):
        raise Unreadable("a JPEG 2000 whose colors are subsampled; save it without subsampling")
    if right <= left or bottom <= top or not bands:
        raise Unreadable("its header says that it has no pixels")
    return Header(right - left, bottom - top, bands, max((part[0] & 127) + 1 for part in parts))


def _signed(data: bytes) -> bool:
    return bool(data[_stream(data) + 42] & 128)


def _stream(data: bytes) -> int:
    """Where the code stream begins. Raises: Unreadable if there is none."""
    if data.startswith(CODESTREAM):
        return 0
    for kind, start, _ in _boxes(data, 0, len(data)):
        if kind == b"jp2c" and data[start : start + 4] == CODESTREAM:
            return start
    raise Unreadable("a broken or truncated JPEG 2000")


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, where its contents begin, where they end) of each box."""
    if data.startswith(CODESTREAM):
        return
    while start + 8 <= end:
        length, kind = struct.unpack_from(">I4s", data, start)
        head = 8
        if length == 1 and start + 16 <= end:
            (length,), head = struct.unpack_from(">Q", data, start + 8), 16
        stop = end if length == 0 else start + length
        if length and length < head:
            return
        yield kind, start + head, min(stop, end)
        start = stop


def _alpha(data: bytes, start: int, end: int, bands: int) -> str:
    """The kind of the last of two or four bands, as the channel definitions say."""
    for kind, at, stop in _boxes(data, start, end):
        if kind == b"cdef" and stop - at >= 2 and bands in (2, 4):
            (count,) = struct.unpack_from(">H", data, at)
            for entry in range(at + 2, min(at + 2 + 6 * count, stop - 5), 6):
                channel, what, _ = struct.unpack_from(">HHH", data, entry)
                if channel == bands - 1:
                    return OPACITY.get(what, "")
    return ""

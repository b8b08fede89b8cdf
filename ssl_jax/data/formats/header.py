"""The size of an image, read from its file's header before a decoder is given the file and takes memory.

OpenCV decodes up to 2^30 pixels. For a PNG it takes as much memory as a chunk claims to be long, even if the chunk is
damaged: a file of 700 bytes with one flipped bit kept it busy for 51 seconds with 4 GB. OpenCV is never given a file of
any other format than these, so its other decoders are out of reach.
"""

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from ssl_jax.data.formats.errors import Unreadable

PNG, GIF, BMP, RIFF, JPEG = b"\x89PNG\r\n\x1a\n", (b"GIF87a", b"GIF89a"), b"BM", b"RIFF", b"\xff\xd8"
# As OpenCV reads it: it skips the character after a number, whatever it is, so a # there begins no comment.
PNM = re.compile(rb"P[1-6]" + 2 * rb"\s(?:\s|#[^\r\n]*[\r\n])*(\d{1,9})" + rb"\b")
# Baseline to arithmetic coded frames; 0xC4, 0xC8 and 0xCC in this range are tables.
JPEG_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}  # the last: JPEG-LS
JPEG_PROGRESSIVE, JPEG_SCAN, JPEG_END = {0xC2, 0xC6, 0xCA, 0xCE}, 0xDA, 0xD9
JPEG_APP1, EXIF = 0xE1, b"Exif\0\0"
JPEG_PADDING = 64  # a stream in another file may be followed by some bytes
JPEG_ALONE = {*range(0xC0), *range(0xD0, 0xD9)}  # markers without a length, and what libjpeg takes for no marker
# Each scan, even of a few bytes, makes libjpeg go over all pixels: 33 kB of scans took 0.7 seconds, 10 MB half an hour.
MAX_SCANS = 100  # encoders write some 10


PNG_BANDS = {0: 1, 2: 3, 3: 4, 4: 2, 6: 4}  # kind of colors: bands. A palette may have alpha


class Header(NamedTuple):
    """`width`, `height` in pixels, at least 1; `bands`, alpha included; `bits` of a value.

    If the header does not say it, bands and bits are the most that the format has.
    """

    width: int
    height: int
    bands: int
    bits: int


def read_header(data: bytes) -> Header:
    """Of the first image in the file.

    Args:
      data: a whole file: BMP, GIF, JPEG, PNG, PNM or WebP; or a stream of JPEG or JPEG-LS from another file.
    Raises: Unreadable for anything else, and for a header that is cut off or impossible.
    """
    try:
        header = _header(data)
    except (struct.error, IndexError) as error:
        raise Unreadable("broken or truncated in its header") from error
    if min(header) < 1:
        raise Unreadable(f"its header says that it has {header.width} x {header.height} pixels")
    return header


def _header(data: bytes) -> Header:
    if data.startswith(JPEG):
        return _jpeg(data)
    if data.startswith(PNG):
        return _png(data)
    if data.startswith(GIF):
        return Header(*struct.unpack_from("<HH", data, 6), 4, 8)
    if data.startswith(RIFF) and data[8:12] == b"WEBP":
        return Header(*_webp(data), 4, 8)
    if data.startswith(BMP):
        (header_bytes,) = struct.unpack_from("<I", data, 14)
        width, height = struct.unpack_from("<HH" if header_bytes == 12 else "<ii", data, 18)
        return Header(abs(width), abs(height), 4, 8)  # a negative height means rows from the top down
    if found := PNM.match(data[:4096]):
        bands = 3 if found[0][:2] in (b"P3", b"P6") else 1
        return Header(int(found[1]), int(found[2]), bands, 16)
    raise Unreadable("broken, truncated, or not an image of a format that is read")


def _png(data: bytes) -> Header:
    """The first chunk. Checks also that no chunk claims to be longer than the file."""
    header, start = None, len(PNG)
    while header is None or start < len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        if start + 12 + length > len(data):
            raise Unreadable("broken or truncated: a chunk is longer than the file")
        if header is None:
            if kind != b"IHDR":
                raise Unreadable("broken: a PNG without a header")
            width, height, bits, colors = struct.unpack_from(">IIBB", data, start + 8)
            header = Header(width, height, PNG_BANDS.get(colors, 4), bits)
        if kind == b"IEND":
            break  # what follows is not read
        start += 12 + length
    return header


def _jpeg(data: bytes) -> Header:
    """The first frame. Raises: Unreadable also for more than MAX_SCANS scans."""
    markers = _jpeg_markers(data)
    for frame, start in markers:
        if frame in (JPEG_SCAN, JPEG_END):
            break
        if frame in JPEG_FRAMES:
            bits, height, width, components = struct.unpack_from(">BHHB", data, start + 4)
            _check_scans(data, markers, components, progressive=frame in JPEG_PROGRESSIVE)
            return Header(width, height, components, bits)
    raise Unreadable("a broken or truncated JPEG")


def jpeg_exif(data: bytes) -> bytes:
    """The EXIF block of a JPEG; b"" if it has none before its first frame."""
    for marker, start in _jpeg_markers(data):
        if marker in (JPEG_SCAN, JPEG_END) or marker in JPEG_FRAMES:
            return b""
        if marker == JPEG_APP1 and data[start + 4 : start + 10] == EXIF:
            (length,) = struct.unpack_from(">H", data, start + 2)
            return data[start + 4 : start + 2 + length]
    return b""


def check_jpeg_end(data: bytes) -> None:
    """Raises: Unreadable for a stream of JPEG that is cut off. libjpeg only warns, and fills the image up with gray."""
    if bytes([0xFF, JPEG_END]) not in data[-JPEG_PADDING:]:
        raise Unreadable("broken or truncated: a stream of JPEG without its end")


def _check_scans(data: bytes, markers: Iterator[tuple[int, int]], components: int, *, progressive: bool) -> None:
    """`markers`: those after the frame. Raises: Unreadable for more than MAX_SCANS scans."""
    scans = 0
    for marker, start in markers:
        if marker == JPEG_END:
            return
        if marker != JPEG_SCAN:
            continue
        if not scans:
            (first,) = struct.unpack_from("B", data, start + 4)
            single = not progressive and first == components  # then libjpeg reads no other scan
            # The file may hold more than the image, as the film in a telephone's photo, and that may look like scans.
            if single or data.count(bytes([0xFF, JPEG_SCAN]), start) <= MAX_SCANS:
                return
        scans += 1
        if scans > MAX_SCANS:
            raise Unreadable(f"a JPEG of more than {MAX_SCANS} scans, of which each takes as long as an image")


def _jpeg_markers(data: bytes) -> Iterator[tuple[int, int]]:
    """(marker, position of its 0xFF), in libjpeg's order. What lies between two markers is skipped, as in libjpeg."""
    position = 2
    while (position := data.find(b"\xff", position)) >= 0:
        marker = data[position + 1]
        yield marker, position
        if marker == 0xFF:
            position += 1
        elif marker in JPEG_ALONE:
            position += 2
        else:
            position += 2 + max(data[position + 2] << 8 | data[position + 3], 2)


def _webp(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (struct.unpack("<I", data[start : start + 3] + b"\0")[0] for start in (24, 27))
        return width + 1, height + 1
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF

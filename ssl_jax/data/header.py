"""The size of an image, read from its file's header before OpenCV is given the file and takes memory.

OpenCV decodes up to 2^30 pixels. For a PNG it takes as much memory as a chunk claims to be long, even if the chunk is
damaged: a file of 700 bytes with one flipped bit kept it busy for 51 seconds with 4 GB. OpenCV is never given a file of
any other format than these, so its other decoders are out of reach.
"""

import re
import struct
from collections.abc import Iterator

PNG, GIF, BMP, RIFF, JPEG = b"\x89PNG\r\n\x1a\n", (b"GIF87a", b"GIF89a"), b"BM", b"RIFF", b"\xff\xd8"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # with a + it is BigTIFF
TIFF_SIDES = {256: 0, 322: 0, 257: 1, 323: 1}  # tag -> axis: widths and heights of the image and of its tiles
TIFF_TYPES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q", 17: "q"}  # all that libtiff takes for a side
# As OpenCV reads it: it skips the character after a number, whatever it is, so a # there begins no comment.
PNM = re.compile(rb"P[1-6]" + 2 * rb"\s(?:\s|#[^\r\n]*[\r\n])*(\d{1,9})" + rb"\b")
# Baseline to arithmetic coded frames; 0xC4, 0xC8 and 0xCC in this range are tables.
JPEG_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
JPEG_PROGRESSIVE, JPEG_SCAN, JPEG_END = {0xC2, 0xC6, 0xCA, 0xCE}, 0xDA, 0xD9
JPEG_ALONE = {*range(0xC0), *range(0xD0, 0xD9)}  # markers without a length, and what libjpeg takes for no marker
# Each scan, even of a few bytes, makes libjpeg go over all pixels: 33 kB of scans took 0.7 seconds, 10 MB half an hour.
MAX_SCANS = 100  # encoders write some 10


def image_size(data: bytes) -> tuple[int, int]:
    """(width, height) in pixels, at least 1, of the first image in the file.

    Args:
      data: a whole file: BMP, GIF, JPEG, PNG, PNM, TIFF or WebP.
    Raises: ValueError for anything else, and for a header that is cut off or impossible.
    """
    try:
        width, height = _size(data)
    except struct.error as error:
        raise ValueError("broken or truncated in its header") from error
    if min(width, height) < 1:
        raise ValueError(f"its header says that it has {width} x {height} pixels")
    return width, height


def _size(data: bytes) -> tuple[int, int]:
    if data.startswith(JPEG):
        return _jpeg(data)
    if data.startswith(PNG):
        return _png(data)
    if data.startswith(GIF):
        return struct.unpack_from("<HH", data, 6)
    if data.startswith(RIFF) and data[8:12] == b"WEBP":
        return _webp(data)
    if data.startswith(TIFF):
        return _tiff(data)
    if data.startswith(BMP):
        (header_bytes,) = struct.unpack_from("<I", data, 14)
        width, height = struct.unpack_from("<HH" if header_bytes == 12 else "<ii", data, 18)
        return abs(width), abs(height)  # a negative height means rows from the top down
    if found := PNM.match(data[:4096]):
        return int(found[1]), int(found[2])
    raise ValueError("broken, truncated, or not an image of a format that is read")


def _png(data: bytes) -> tuple[int, int]:
    """The size in the first chunk. Checks also that no chunk claims to be longer than the file."""
    size, start = None, len(PNG)
    while size is None or start < len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        if start + 12 + length > len(data):
            raise ValueError("broken or truncated: a chunk is longer than the file")
        if size is None:
            if kind != b"IHDR":
                raise ValueError("broken: a PNG without a header")
            size = struct.unpack_from(">II", data, start + 8)
        if kind == b"IEND":
            break  # what follows is not read
        start += 12 + length
    return size


def _jpeg(data: bytes) -> tuple[int, int]:
    """The size in the first frame. Raises: ValueError also for more than MAX_SCANS scans."""
    markers = _jpeg_markers(data)
    for frame, start in markers:
        if frame in (JPEG_SCAN, JPEG_END):
            break
        if frame in JPEG_FRAMES:
            height, width, components = struct.unpack_from(">HHB", data, start + 5)
            _check_scans(data, markers, components, progressive=frame in JPEG_PROGRESSIVE)
            return width, height
    raise ValueError("a broken or truncated JPEG")


def _check_scans(data: bytes, markers: Iterator[tuple[int, int]], components: int, *, progressive: bool) -> None:
    """`markers`: those after the frame. Raises: ValueError for more than MAX_SCANS scans."""
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
            raise ValueError(f"a JPEG of more than {MAX_SCANS} scans, of which each takes as long as an image")


def _jpeg_markers(data: bytes) -> Iterator[tuple[int, int]]:
    """(marker, position of its 0xFF), in libjpeg's order. What lies between two markers is skipped, as in libjpeg."""
    position = 2
    while (position := data.find(b"\xff", position)) >= 0:
        (marker,) = struct.unpack_from("B", data, position + 1)
        yield marker, position
        if marker == 0xFF:
            position += 1
        elif marker in JPEG_ALONE:
            position += 2
        else:
            position += 2 + max(struct.unpack_from(">H", data, position + 2)[0], 2)


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


def _tiff(data: bytes) -> tuple[int, int]:
    """The size in the first directory. If a side is there twice, or for the image and for a tile, the larger counts.

    libtiff takes the first of two sides, and decodes whole tiles.
    """
    endian = "<" if data.startswith(b"II") else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    offset, count, entry_bytes, value_at = ("Q", "Q", 20, 12) if big else ("I", "H", 12, 8)
    (start,) = struct.unpack_from(endian + offset, data, 8 if big else 4)
    if start >= len(data):
        raise ValueError("broken or truncated: its directory is not in the file")
    (entries,) = struct.unpack_from(endian + count, data, start)
    first = start + struct.calcsize(endian + count)
    sides = [0, 0]
    for entry in range(first, min(first + entry_bytes * entries, len(data)), entry_bytes):
        tag, kind = struct.unpack_from(endian + "HH", data, entry)
        if tag in TIFF_SIDES:
            if kind not in TIFF_TYPES:
                raise ValueError(f"broken: a TIFF with a side of type {kind}, which is no integer")
            value, at = endian + TIFF_TYPES[kind], entry + value_at
            if struct.calcsize(value) > struct.calcsize(offset):
                (at,) = struct.unpack_from(endian + offset, data, at)  # a value too large for the entry is elsewhere
            (side,) = struct.unpack_from(value, data, at)
            sides[TIFF_SIDES[tag]] = max(sides[TIFF_SIDES[tag]], side)
    return sides[0], sides[1]

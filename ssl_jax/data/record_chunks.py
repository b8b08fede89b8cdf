"""Where the records of an ArrayRecord file lie in it, so that one is read with a single read, and no index in memory.

array_record's own reader keeps some 50 bytes in memory for each record of an open file.

The layout is that of Riegeli's records, https://github.com/google/riegeli/blob/master/doc/riegeli_records_file_format.md.
Blocks of 64 kB begin with a header of 24 bytes, which interrupts whatever lies there. A chunk has a header of 40 bytes,
then its data. Here each chunk holds one record, uncompressed ("group_size:1,uncompressed"): its kind of compression,
0, the size of its sizes, the sizes, the record.
"""

import importlib
import struct
from pathlib import Path
from typing import Any, BinaryIO

BLOCK, BLOCK_HEADER = 2**16, 24
CHUNK_HEADER = struct.Struct("<QQQQQ")  # hash, bytes of data, hash of these, kind and records, bytes of the records
RECORDS, UNCOMPRESSED = ord("r"), b"\0"
WRITER_OPTIONS = "group_size:1,uncompressed"


def library(module: str) -> Any:
    """A module of array_record, which is for Linux and macOS only. Raises: ValueError if it is not installed."""
    try:
        return importlib.import_module(f"array_record.python.{module}")
    except ImportError as error:
        raise ValueError(
            "ArrayRecord files need array_record: pip install array_record. It has no wheel for Windows; there, use "
            "folders, .parquet or .tar"
        ) from error


def find(path: Path, count: int) -> list[tuple[int, int]]:
    """(position, size in bytes) of each of the file's `count` records, for `read`. What follows them is array_record's.

    Raises: ValueError for a file that was written with other options or was cut off, and for one that is none.
    """
    found: list[tuple[int, int]] = []
    with path.open("rb") as file:
        position = 0
        while len(found) < count:
            begin = position
            header = read(file, position, CHUNK_HEADER.size)
            if len(header) < CHUNK_HEADER.size:
                raise ValueError(f"{path} is cut off at byte {position:,}")
            _, data_bytes, _, kind, record_bytes = CHUNK_HEADER.unpack(header)
            data = after(position, CHUNK_HEADER.size)
            position = max(after(data, data_bytes), begin + (kind >> 8))
            if kind & 0xFF != RECORDS:  # the signature of the file
                continue
            if kind >> 8 != 1 or record_bytes >= data_bytes or read(file, data, 1) != UNCOMPRESSED:
                raise ValueError(f"{path} was not written with {WRITER_OPTIONS}")
            found.append((after(data, data_bytes - record_bytes), record_bytes))
    return found


def after(position: int, size: int) -> int:
    """The position behind `size` bytes that begin at `position`."""
    first = _skip_header(position)
    room = BLOCK - first % BLOCK
    if size <= room:
        return first + size
    blocks, rest = divmod(size - room, BLOCK - BLOCK_HEADER)
    return first + room + blocks * BLOCK + (BLOCK_HEADER + rest if rest else 0)


def read(file: BinaryIO, position: int, size: int) -> bytes:
    """`size` bytes that begin at `position`, without the headers of blocks; fewer where the file ends."""
    first, end = span(position, size)
    file.seek(first)
    return without_headers(file.read(end - first), first)


def span(position: int, size: int) -> tuple[int, int]:
    """Where in the file the bytes are that `without_headers` makes `size` bytes of, which begin at `position`."""
    first = _skip_header(position)
    return first, after(first, size)


def without_headers(stored: bytes, first: int) -> bytes:
    """The bytes of a `span` that begins at `first`, without the headers of blocks."""
    room = BLOCK - first % BLOCK
    if len(stored) <= room:
        return stored
    view = memoryview(stored)
    starts = range(room + BLOCK_HEADER, len(view), BLOCK)
    return b"".join([view[:room], *(view[k : k + BLOCK - BLOCK_HEADER] for k in starts)])


def _skip_header(position: int) -> int:
    return position if position % BLOCK else position + BLOCK_HEADER

"""Packed images as a source: `ssl_jax pack` makes them. data/packed_index.py says what there is."""

import os
import zlib
from pathlib import Path

import numpy as np

from ssl_jax import paths
from ssl_jax.data import packed_index, record_chunks
from ssl_jax.data.formats import UndecodableImage, undecodable
from ssl_jax.data.packed_index import PackedSplit, Row
from ssl_jax.data.record_source import RecordSource
from ssl_jax.data.sources import Source
from ssl_jax.paths import AnyPath, StorePath


class PackedSource(RecordSource):
    """The images of one split. Opening takes the same time and memory for any number of them.

    Args:
      root: the folder, on a disk or in an object store, where each image is a request of its own.
      split: its name.
      facts: what the index says of it.
      channels: 1 or 3, of the images as they are read; without effect where images are not converted.
    Raises: ValueError, FileNotFoundError for files that are missing or damaged.
    """

    def __init__(self, root: AnyPath, split: str, facts: PackedSplit, channels: int | None):
        columns = packed_index.open_columns(packed_index.on_disk(root, split), split, facts)
        read_channels = channels if facts.converted else None
        super().__init__(
            str(root), columns.names, columns.labels, facts.class_names, columns.groups, read_channels, columns.targets
        )
        count = len(facts.shards)
        self._shards = [root / packed_index.shard_name(split, k, count) for k in range(count)]
        self._ends, self._rows, self._split, self._facts = np.cumsum(facts.shards), columns.rows, split, facts
        self._root = paths.absolute(root)
        self.nodata = facts.nodata

    def encoded(self, index: int):
        row = self._rows[index]
        shard, name = self._shards[int(np.searchsorted(self._ends, index, side="right"))], self._names[index]
        with undecodable(name):
            data = _in_store(shard, row) if isinstance(shard, StorePath) else _on_disk(shard, row)
        if len(data) != row.size or zlib.crc32(data) != row.crc:
            raise UndecodableImage(name, f"its record in {shard.name} is damaged")
        return data

    def label(self, index: int):
        return self._rows[index].label

    def with_channels(self, channels: int):
        return super().with_channels(channels) if self._facts.converted else self

    def origin(self, index: int):
        return f"{self._root}/{self._split}/{self._names[index]}"

    def digest(self):
        """That of the images that were packed, if all were packed as they are."""
        return self._facts.digest

    def sizes(self):
        return self._rows.all["size"].tolist()


def _on_disk(shard: Path, row: Row) -> bytes:
    # Opened each time: threads then share no position, and a set may have more shards than files may be open.
    with shard.open("rb", buffering=0) as file:
        fits = row.start + row.size <= os.fstat(file.fileno()).st_size  # before memory is taken for it
        return record_chunks.read(file, row.start, row.size) if fits else b""


def _in_store(shard: StorePath, row: Row) -> bytes:
    first, end = record_chunks.span(row.start, row.size)
    return record_chunks.without_headers(paths.read_range(shard, first, end), first)


def packed_splits(text: str, channels: int | None) -> dict[str, Source]:
    """Split -> its images. Raises: ValueError, FileNotFoundError as `PackedSource`, also for missing shards."""
    root = paths.expanded(paths.path(text))
    splits = packed_index.read(root)
    there = set(paths.names(root))
    names = [
        packed_index.shard_name(name, k, len(split.shards))
        for name, split in splits.items()
        for k in range(len(split.shards))
    ]
    if missing := [name for name in names if name not in there]:
        raise FileNotFoundError(
            f"{text!r} lacks {len(missing)} of its {len(names)} shards, such as {missing[0]}; copy them"
        )
    return {name: PackedSource(root, name, split, channels) for name, split in splits.items()}

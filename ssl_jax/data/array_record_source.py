"""ArrayRecord files as sources of images: each record is the bytes of an image file. There are no labels."""

from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from ssl_jax import paths
from ssl_jax.data import record_chunks, shards
from ssl_jax.data.formats import UndecodableImage
from ssl_jax.data.record_source import RecordSource
from ssl_jax.data.sources import Source
from ssl_jax.paths import AnyPath

RANDOM_ACCESS = {"max_parallelism": "0"}  # as array_record recommends for it


class ArrayRecordSource(RecordSource):
    """Images in ArrayRecord files.

    Args:
      name: for messages and reports.
      files: in order.
      channels: 1 or 3, of the images as they are read.
    Raises: ValueError for a file that is no ArrayRecord, that is damaged, or that holds no single records.
    """

    def __init__(self, name: str, files: Sequence[AnyPath], channels: int | None):
        self._files = [_open(file) for file in tqdm(files, f"opening {name}", unit=" files", delay=1)]
        self._bytes = [paths.size(file) for file in files]
        counts = list(map(len, self._files))
        self._ends = np.cumsum(counts)
        names = [f"{file.name}[{k}]" for file, count in zip(files, counts, strict=True) for k in range(count)]
        super().__init__(name, names, None, (), None, channels)

    def encoded(self, index: int):
        file = int(np.searchsorted(self._ends, index, side="right"))
        position = index - int(self._ends[file]) + len(self._files[file])
        try:
            return self._files[file][position]
        except (RuntimeError, ValueError) as error:
            raise UndecodableImage(self._names[index], f"a damaged record: {error}") from error

    def sizes(self):
        return self._bytes


def array_record_splits(text: str, channels: int | None) -> dict[str, Source]:
    """Split -> its images. The names of the files say the splits: see data/shards.py.

    Args:
      text: the files: photos-{000..010}.array_record, photos.array_record-*.
      channels: 1 or 3; images are converted as they are read.
    Raises: FileNotFoundError, ValueError; see `ArrayRecordSource`.
    """
    found = shards.by_split(shards.expand(text))
    return {split: ArrayRecordSource(text, files, channels) for split, files in found.items()}


def _open(path: AnyPath):
    if paths.is_remote(path):
        raise ValueError(
            f"{path} is in an object store, where the library of ArrayRecord cannot read; copy it to a disk, or save "
            "the images as .tar or .parquet, which are read from a store"
        )
    array_record = record_chunks.library("array_record_data_source")
    try:
        return array_record.ArrayRecordDataSource(str(path), RANDOM_ACCESS)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is no ArrayRecord file, or damaged: {error}") from error

"""WebDataset's tars as sources of images: members whose names are the same up to the first dot are one sample.

    000/cat.jpg  000/cat.cls  000/dog.png  000/dog.json

The image is the member .jpg, .png, .tif, .npy or another that is decoded. `.cls` holds the label, a number or text; or
`.json` an object with "label", and "group" for what the image belongs to.
"""

import json
import logging
import os
import tarfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, cast

import numpy as np
from tqdm import tqdm

from ssl_jax import paths
from ssl_jax.data import shards, splits
from ssl_jax.data.formats import ENDINGS, UndecodableImage, check_channels
from ssl_jax.data.formats.stored import MAX_BYTES
from ssl_jax.data.record_source import RecordSource
from ssl_jax.data.sources import Source
from ssl_jax.paths import AnyPath, StorePath

IMAGES = tuple(ending.removeprefix(".") for ending in ENDINGS)
THREADS = 8  # files that are indexed at a time
MAX_FACTS = 2**20  # bytes of a .cls or .json


class Sample(NamedTuple):
    """`offset`, `size`: of the image's bytes in `file`. `label`, `group`: "" without one."""

    file: AnyPath
    name: str
    offset: int
    size: int
    label: str
    group: str


class TarSource(RecordSource):
    """Images in uncompressed tar files. Each is read from its offset.

    Args:
      name: for messages and reports.
      samples: in order.
      class_names: of the labels.
      channels: 1 or 3, of the images as they are read.
    """

    def __init__(self, name: str, samples: Sequence[Sample], class_names: tuple[str, ...], channels: int | None):
        labels = splits.indices([sample.label for sample in samples], class_names)
        groups = np.array([sample.group for sample in samples])
        names = [f"{sample.file.name}/{sample.name}" for sample in samples]
        super().__init__(name, names, labels, class_names, groups if all(groups) else None, channels)
        files = {file: k for k, file in enumerate(dict.fromkeys(sample.file for sample in samples))}
        self._files = list(files)
        self._file = np.array([files[sample.file] for sample in samples], np.int32)
        self._offset = np.array([sample.offset for sample in samples], np.int64)
        self._size = np.array([sample.size for sample in samples], np.int64)

    def encoded(self, index: int):
        name, size = self._names[index], int(self._size[index])
        if size > MAX_BYTES:
            raise UndecodableImage(name, f"{size:,} bytes; no more than {MAX_BYTES:,} are read")
        file, offset = self._files[int(self._file[index])], int(self._offset[index])
        try:
            data = _read_at(file, offset, size)
        except OSError as error:
            raise UndecodableImage(name, os.strerror(error.errno) if error.errno else str(error)) from error
        if len(data) < size:
            raise UndecodableImage(name, "its file has become shorter")
        return data

    def sizes(self):
        return self._size.tolist()


def _read_at(path: AnyPath, offset: int, size: int) -> bytes:
    if isinstance(path, StorePath):
        return paths.read_range(path, offset, offset + size)
    # Opened each time: threads then share no position, and a set may have more shards than files may be open.
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        return file.read(size)


def tar_splits(text: str, channels: int | None) -> dict[str, Source]:
    """Split -> its images, all with the same class names. The names of the files say the splits: see data/shards.py.

    Args:
      text: the files: photos-{000..010}.tar, photos-*.tar.
      channels: 1 or 3; images are converted as they are read.
    Raises: FileNotFoundError; ValueError for a file that is no tar, compressed or damaged, and for samples of more than
      one image.
    """
    check_channels(channels)
    files = shards.expand(text)
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(index_tar, files)
        of_file = dict(zip(files, tqdm(found, f"indexing {text}", len(files), unit=" files", delay=1), strict=True))
    names = splits.class_names(sample.label for samples in of_file.values() for sample in samples)
    return {
        split: TarSource(text, [sample for file in of for sample in of_file[file]], names, channels)
        for split, of in shards.by_split(files).items()
    }


def index_tar(path: AnyPath) -> list[Sample]:
    """The samples of a tar that have an image, by reading its headers and labels only.

    Raises: FileNotFoundError, ValueError; see `tar_splits`.
    """
    samples: list[Sample] = []
    try:
        with paths.seekable(path) as opened, tarfile.open(fileobj=opened, mode="r:") as tar:
            key = ""
            members: dict[str, tarfile.TarInfo] = {}
            for member in tar:
                if not member.isreg() or member.sparse:
                    continue
                folder, _, file = member.name.rpartition("/")
                stem, _, ending = file.partition(".")
                if (of := f"{folder}/{stem}" if folder else stem) != key:
                    samples += _sample(path, tar, key, members)
                    key, members = of, {}
                members[ending.lower()] = member
            samples += _sample(path, tar, key, members)
            if not _ends(tar):
                logging.warning("%s has no end mark: it may have been cut off after %d images", path, len(samples))
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(
            f"{path} is no tar, damaged, or compressed, which allows no random access (unpack it with gunzip): {error}"
        ) from error
    return samples


def _sample(path: AnyPath, tar: tarfile.TarFile, key: str, members: dict[str, tarfile.TarInfo]) -> Iterable[Sample]:
    images = [ending for ending in members if ending.rpartition(".")[2] in IMAGES]
    images = [ending for ending in images if "." not in ending] or images  # cat.jpg has a mask cat.seg.png
    if not images:
        return []
    if len(images) > 1:
        raise ValueError(f"{path}: {key!r} has more than one image, {', '.join(images)}; leave one of them")
    image = members[images[0]]
    label, group = _facts(path, tar, key, members)
    return [Sample(path, image.name, image.offset_data, image.size, label, group)]


def _facts(path: AnyPath, tar: tarfile.TarFile, key: str, members: dict[str, tarfile.TarInfo]) -> tuple[str, str]:
    """(label, group)."""
    texts: dict[str, bytes] = {}
    for ending in ("cls", "json"):
        if (member := members.get(ending)) is not None and member.size <= MAX_FACTS:
            file = tar.extractfile(member)
            texts[ending] = file.read() if file else b""
    try:
        found = json.loads(texts.get("json", b"{}"))
        facts = cast(dict[str, Any], found) if isinstance(found, dict) else {}
        label = texts["cls"].decode().strip() if "cls" in texts else facts.get("label")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: the label of {key!r} cannot be read: {error}") from error
    return "" if label is None else str(label), str(facts.get("group", ""))


def _ends(tar: tarfile.TarFile) -> bool:
    """Whether zeros mark the end. Raises: ReadError where a header is damaged: tarfile takes it for the end."""
    file = tar.fileobj
    assert file is not None
    file.seek(tar.offset)
    block = file.read(tarfile.BLOCKSIZE)
    if block.strip(b"\0"):
        raise tarfile.ReadError(f"no header at byte {tar.offset:,}")
    return bool(block)

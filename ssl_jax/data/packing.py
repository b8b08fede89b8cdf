"""Packs images into shards of ArrayRecord with an index: a large set then opens at once, in little memory.

packed = pack("photos", "photos-packed", resize=256)
source = open_data("photos-packed")

A shard holds neighboring images. Its number of images is decided before the first one is written, so it does not matter
in which order shards are made, by how many threads, and in how many starts.
"""

# pyright: reportMissingTypeStubs=false

import contextlib
import csv
import dataclasses
import io
import json
import os
import shutil
import threading
import zlib
from collections.abc import Collection, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ssl_jax import paths
from ssl_jax.data import opening, packed_index, record_chunks
from ssl_jax.data.formats import UndecodableImage
from ssl_jax.data.packed_index import PLAN, RECORD, UNFINISHED, PackedSplit, shard_name
from ssl_jax.data.packing_records import make_record
from ssl_jax.data.sources import Source, digest_of, spread
from ssl_jax.data.threads import default_threads
from ssl_jax.paths import AnyPath, StorePath

SHARD_MB = 256
SAMPLED = 64  # images whose sizes say how many a shard holds


@dataclasses.dataclass(frozen=True)
class Packed:
    """What `pack` made. Of each split: the number of its images and shards, and {name: reason} of what was left out."""

    images: Mapping[str, int]
    shards: Mapping[str, int]
    unreadable: Mapping[str, Mapping[str, str]]


@dataclasses.dataclass(frozen=True)
class _Shard:
    split: str
    number: int
    count: int  # of all shards of the split
    start: int  # its first image
    end: int

    @property
    def name(self) -> str:
        return shard_name(self.split, self.number, self.count)


def pack(
    text: str,
    out: str | os.PathLike[str],
    *,
    resize: int = 0,
    shard_mb: float = SHARD_MB,
    workers: int = 0,
) -> Packed:
    """Packs all splits of a data set. What was begun with the same arguments goes on; shards that are done stay.

    Images keep their type and channels. The bytes of image files are copied; images of other files and arrays are
    stored as PNG or NumPy's, without loss. An image that cannot be decoded is left out.

    Args:
      text: what `open_data` takes.
      out: the folder to make. For one in an object store the shards are made below ~/.cache/ssl_jax (or
        $XDG_CACHE_HOME), which needs room for all of them, and copied when the last one is done.
      resize: pixels of the shorter side of images that have more there; a JPEG becomes a JPEG of quality 95. 0: images
        stay as they are.
      shard_mb: about so many megabytes a shard.
      workers: threads, each of which makes a shard; 0: `default_threads()`.
    Raises: ValueError, FileNotFoundError; the message says what to do. OSError.
    """
    if resize < 0 or workers < 0 or not shard_mb > 0:
        raise ValueError(
            f"resize and workers must be 0 or above, and shard_mb above 0, got {resize}, {workers}, {shard_mb:g}"
        )
    record_chunks.library("array_record_module")  # before any work
    root = paths.expanded(paths.path(out))
    sources = opening.open_splits(text, None)
    made_of = {name: [source.digest(), len(source)] for name, source in sources.items()}
    asked = {"images": made_of, "resize": resize, "shard_mb": shard_mb}
    if not isinstance(root, StorePath):
        return _pack(sources, root, asked, resize, shard_mb, workers)
    folder = packed_index.cache("packing", os.fspath(root).encode())
    if packed_index.is_packed_whole(root):
        _check_same(root, packed_index.made_of(root), asked)
        return _told(root)
    packed = _pack(sources, folder, asked, resize, shard_mb, workers)
    _copy_to_store(folder, root)
    shutil.rmtree(folder)
    return packed


def _pack(
    sources: Mapping[str, Source], root: Path, asked: dict[str, Any], resize: int, shard_mb: float, workers: int
) -> Packed:
    work = root / UNFINISHED
    if packed_index.is_packed_whole(root):
        _check_same(root, packed_index.made_of(root), asked)
    else:
        plan = _begin(root, work, asked, sources, resize, shard_mb)
        each = plan["images_a_shard"]
        shards = [shard for name, source in sources.items() for shard in _shards(name, len(source), each[name])]
        _make_all(shards, sources, root, work, resize, workers or default_threads())
        packed = {name: _finish(root, work, name, source, shards, resize) for name, source in sources.items()}
        packed_index.write(root, packed, asked)
    shutil.rmtree(work, ignore_errors=True)
    return _told(root)


def _copy_to_store(folder: Path, root: StorePath) -> None:
    """Copies what is not there yet, the index last, which makes it a packed set. Raises: ValueError, StoreError."""
    names = sorted(paths.files_below(folder), key=lambda name: (name == packed_index.FILE, name))
    there = set(paths.names(root))
    if others := sorted(there.difference(names)):
        raise ValueError(f"{str(root)!r} holds other files, such as {others[0]}; name a new folder")
    for name in tqdm(names, f"copying to {root}", unit=" files", delay=1):
        if name not in there or paths.size(root / name) != paths.size(folder / name):
            paths.upload(root / name, (folder / name).read_bytes())


def _told(root: AnyPath) -> Packed:
    found = packed_index.read(root)
    return Packed(
        {name: split.images for name, split in found.items()},
        {name: len(split.shards) for name, split in found.items()},
        {name: _left_out(root, name) for name in found},
    )


def _begin(
    root: Path, work: Path, asked: dict[str, Any], sources: Mapping[str, Source], resize: int, shard_mb: float
) -> dict[str, Any]:
    """The plan: what is packed, and "images_a_shard" of each split. Made once, then read."""
    if (work / PLAN).exists():
        plan = json.loads((work / PLAN).read_text())
        _check_same(root, plan, asked)
        return plan
    if root.exists() and any(file.name != UNFINISHED for file in root.iterdir()):
        raise ValueError(f"{str(root)!r} holds other files; name a new folder")
    work.mkdir(parents=True, exist_ok=True)
    plan = {**asked, "images_a_shard": {name: _images_a_shard(of, resize, shard_mb) for name, of in sources.items()}}
    _write_whole(work / PLAN, plan)
    return plan


def _check_same(root: AnyPath, begun: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raises: ValueError if a folder was packed, or begun, with other arguments than `asked`."""
    if changed := [key for key, value in asked.items() if begun.get(key) != value]:
        raise ValueError(
            f"{str(root)!r} was packed with other {', '.join(changed)} ({begun.get(changed[0])}, now "
            f"{asked[changed[0]]}); give the same again, remove it to begin anew, or name another folder"
        )


def _left_out(root: AnyPath, split: str) -> dict[str, str]:
    """{name: reason}, as `_finish` wrote them."""
    try:
        text = paths.read_bytes(root / f"{split}.unreadable.csv").decode()
    except FileNotFoundError:
        return {}
    _, *rows = csv.reader(io.StringIO(text, newline=""))
    return {row[0]: row[1] for row in rows}


def _images_a_shard(source: Source, resize: int, shard_mb: float) -> int:
    sizes: list[int] = []
    for index in spread(len(source), SAMPLED):
        with contextlib.suppress(UndecodableImage):
            sizes.append(len(make_record(source, int(index), resize)))
    return max(int(shard_mb * 1e6 / max(float(np.mean(sizes)), 1.0)), 1) if sizes else len(source)


def _shards(split: str, images: int, each: int) -> list[_Shard]:
    count = -(-images // each)
    return [_Shard(split, k, count, k * each, min((k + 1) * each, images)) for k in range(count)]


def _make_all(
    shards: list[_Shard], sources: Mapping[str, Source], root: Path, work: Path, resize: int, workers: int
) -> None:
    stop = threading.Event()
    waiting = [shard for shard in shards if _facts(work, shard) is None]
    total = sum(shard.end - shard.start for shard in shards)
    done = total - sum(shard.end - shard.start for shard in waiting)
    with tqdm(desc=f"packing {root}", total=total, initial=done, unit=" images", delay=1) as bar:
        pool = ThreadPoolExecutor(workers, thread_name_prefix="pack")
        try:
            made = [pool.submit(_make, shard, sources[shard.split], root, work, resize, stop, bar) for shard in waiting]
            for future in as_completed(made):
                future.result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _make(
    shard: _Shard, source: Source, root: Path, work: Path, resize: int, stop: threading.Event, bar: "tqdm[Any]"
) -> None:
    """Writes a shard, then the positions of its records, then its facts: with these it is done."""
    array_record = record_chunks.library("array_record_module")
    written: list[tuple[int, int]] = []  # (size, CRC)
    left_out: list[tuple[int, str, str]] = []
    path = root / shard.name
    with _disk_errors(path):
        writer = array_record.ArrayRecordWriter(str(path), record_chunks.WRITER_OPTIONS)
    for index in range(shard.start, shard.end):
        if stop.is_set():
            return
        bar.update()
        try:
            record = make_record(source, index, resize)
        except UndecodableImage as error:
            left_out.append((index, error.name, error.reason))
            continue
        with _disk_errors(path):
            writer.write(record)
        written.append((len(record), zlib.crc32(record)))
    with _disk_errors(path):
        writer.close()
    records = _checked(path, written)
    with (work / f"{shard.name}.npy").open("wb") as file:
        np.save(file, records)
    _write_whole(work / f"{shard.name}.json", {"images": len(records), "left_out": left_out})


@contextlib.contextmanager
def _disk_errors(path: Path) -> Generator[None]:
    """array_record raises others. Raises: ValueError."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path} cannot be written: {error}; make room there, and pack again") from error


def _checked(path: Path, written: list[tuple[int, int]]) -> np.ndarray:
    """The RECORD of each record, after reading it again. Raises: ValueError."""
    found = record_chunks.find(path, len(written))
    records = np.array([(start, size, crc) for (start, size), (_, crc) in zip(found, written, strict=True)], RECORD)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        for (start, size), expected in zip(found, written, strict=True):
            if (size, zlib.crc32(record_chunks.read(file, start, size))) != expected:
                raise ValueError(f"{path} does not hold what was written to it; look after the disk")
    return records


def _finish(root: Path, work: Path, name: str, source: Source, shards: list[_Shard], resize: int) -> PackedSplit:
    """Writes the columns of a split -> what the index says of it."""
    own = [shard for shard in shards if shard.split == name]
    facts = [_facts(work, shard) or {} for shard in own]
    counts, left_out = tuple(of["images"] for of in facts), [one for of in facts for one in of["left_out"]]
    if not sum(counts):
        raise ValueError(
            f"no image of {source.name} ({name}) can be decoded, for example {left_out[0][1]}: {left_out[0][2]}"
        )
    skipped, targets = {index for index, _, _ in left_out}, source.targets
    columns = {"labels": source.labels, "groups": source.groups, "targets": targets and targets.values}
    columns = {column: _kept(values, skipped) for column, values in columns.items() if values is not None}
    names = (source.image_name(index) for index in range(len(source)) if index not in skipped)
    records = (np.load(work / f"{shard.name}.npy") for shard in own)
    packed_index.write_rows(root, name, records, names, columns.get("labels"), sum(counts))
    for column, values in columns.items():
        with (root / f"{name}.{column}.npy").open("wb") as file:
            np.save(file, values, allow_pickle=False)
    if left_out:
        with (root / f"{name}.unreadable.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("name", "reason"), *((name, reason) for _, name, reason in left_out)])
    whole = not resize and not left_out
    return PackedSplit(
        digest=source.digest() if whole else digest_of([source.digest(), str(resize), *map(str, sorted(skipped))]),
        shards=counts,
        converted=source.with_channels(3) is not source,
        class_names=source.class_names,
        nodata=source.nodata,
        target_kind=targets.kind if targets else "",
        target_names=targets.names if targets else (),
        labeled=source.labels is not None,
        grouped=source.groups is not None,
    )


def _kept(values: np.ndarray, skipped: Collection[int]) -> np.ndarray:
    return np.delete(values, sorted(skipped), axis=0) if skipped else values


def _facts(work: Path, shard: _Shard) -> dict[str, Any] | None:
    """Of a shard that is done; else None."""
    try:
        return json.loads((work / f"{shard.name}.json").read_text())
    except FileNotFoundError:
        return None


def _write_whole(path: Path, facts: dict[str, Any]) -> None:
    """As a whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(facts))
    partial.replace(path)

"""The index of packed images: what is known of each, in files that are read where they are needed.

    photos/ssl_jax_pack.json                        of each split: its images, classes, images a shard
    photos/train-00000-of-00012.array_record        the images
    photos/train.rows.npy                           of each image: where its bytes and its name are, a CRC, its label
    photos/train.names                              all names in one text
    photos/train.labels.npy  .groups.npy  .targets.npy      where there are any
    photos/train.unreadable.csv                     name and reason of the images that were left out

Opening it takes the same memory for any number of images. Whole columns are mapped to memory. What is known of one
image is read from the file: of a mapped file, each image would bring up to a megabyte of its neighbors into resident
memory.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from jaxtyping import Int32, Shaped
from tqdm import tqdm

from ssl_jax import paths
from ssl_jax.data.names import Names
from ssl_jax.data.targets import Targets
from ssl_jax.data.threads import read_at
from ssl_jax.paths import AnyPath, StorePath

FILE, FORMAT, VERSION = "ssl_jax_pack.json", "ssl_jax pack", 1
UNFINISHED, PLAN = "unfinished", "plan.json"  # folder of a pack that is not at its end, and what is planned
RECORD = np.dtype([("start", "<i8"), ("size", "<u4"), ("crc", "<u4")])
ROW, ROW_FIELDS = np.dtype([*RECORD.descr, ("label", "<i4"), ("name_end", "<i8")]), struct.Struct("<qIIiq")


@dataclasses.dataclass(frozen=True)
class PackedSplit:
    """What the index says of a split.

    Attributes:
      digest: see `Source.digest`.
      shards: the number of images in each shard.
      converted: whether the images are photos, which become gray or RGB as they are read.
      class_names, nodata, target_kind, target_names: as of a `Source`; () and "" where there are none.
      labeled, grouped: whether there are labels and groups.
    """

    digest: str
    shards: tuple[int, ...]
    converted: bool
    class_names: tuple[str, ...] = ()
    nodata: tuple[float, ...] = ()
    target_kind: str = ""
    target_names: tuple[str, ...] = ()
    labeled: bool = False
    grouped: bool = False

    @property
    def images(self) -> int:
        return sum(self.shards)


class Row(NamedTuple):
    """Of an image: where its record begins in its shard, its bytes and their CRC-32; its label, -1 for none; where its
    name ends in the text of all names."""

    start: int
    size: int
    crc: int
    label: int
    name_end: int


class Rows:
    """The rows of a split. `all`: mapped to memory."""

    def __init__(self, root: Path, split: str, images: int):
        self.all = _mapped(root, split, "rows", images, ROW)
        self._file, self._first = (root / f"{split}.rows.npy").open("rb", buffering=0), self.all.offset

    def __getitem__(self, index: int) -> Row:
        place = self._first + index * ROW.itemsize
        return Row(*ROW_FIELDS.unpack(read_at(self._file.fileno(), ROW.itemsize, place)))


class PackedNames(Sequence[str]):
    """The names of the images of `rows`. Raises: ValueError for a text that does not fit."""

    def __init__(self, root: Path, split: str, rows: Rows):
        self._rows, self._path = rows, root / f"{split}.names"
        self._file = self._path.open("rb", buffering=0)
        if self._path.stat().st_size != rows.all[-1]["name_end"]:
            raise ValueError(f"{self._path} is damaged; pack the images again, or copy it whole")

    def __len__(self) -> int:
        return len(self._rows.all)

    def __getitem__(self, index: int) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not 0 <= index < len(self):
            raise IndexError(index)
        start, end = self._rows[index - 1].name_end if index else 0, self._rows[index].name_end
        return os.fsdecode(read_at(self._file.fileno(), end - start, start))

    def __iter__(self) -> Iterator[str]:
        text = np.memmap(self._path, np.uint8, "r") if self._path.stat().st_size else np.zeros(0, np.uint8)
        return iter(Names(text, self._rows.all["name_end"]))


@dataclasses.dataclass(frozen=True)
class Columns:
    """Of each image. Arrays are mapped to memory."""

    rows: Rows
    names: PackedNames
    labels: Int32[np.ndarray, " images"] | None
    groups: Shaped[np.ndarray, " images"] | None
    targets: Targets | None


def shard_name(split: str, number: int, count: int) -> str:
    """The name that TFDS would give to the shard."""
    return f"{split}-{number:05d}-of-{count:05d}.array_record"


def write(root: Path, splits: dict[str, PackedSplit], made_of: dict[str, Any]) -> None:
    """Writes what makes a folder a packed one, when all else is there. `made_of`: the arguments of the pack."""
    found: dict[str, Any] = {"format": FORMAT, "version": VERSION, "made_of": made_of}
    found["splits"] = {name: dataclasses.asdict(split) for name, split in splits.items()}
    (root / FILE).write_text(json.dumps(found, indent=1) + "\n")


def is_packed_whole(root: AnyPath) -> bool:
    return (root / FILE).is_file()


def is_packed(root: AnyPath) -> bool:
    """Raises: ValueError for a pack that is not at its end."""
    if is_packed_whole(root):
        return True
    if (root / UNFINISHED / PLAN).exists():
        raise ValueError(f"{str(root)!r} is packed in part; the same ssl_jax pack goes on with it")
    return False


def made_of(root: AnyPath) -> dict[str, Any]:
    """What `write` was given. Raises: as `read`."""
    read(root)
    return json.loads((root / FILE).read_text())["made_of"]


def read(root: AnyPath) -> dict[str, PackedSplit]:
    """Split -> what is known of it. Raises: ValueError for a damaged index, or one of a newer ssl_jax."""
    try:
        found = json.loads((root / FILE).read_text())
        if (found["format"], found["version"]) != (FORMAT, VERSION):
            raise ValueError(f"{root / FILE} is of version {found['version']}, which a newer ssl_jax reads")
        return {name: _split(fields) for name, fields in found["splits"].items()}
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{root / FILE} is damaged ({type(error).__name__}: {error}); pack the images again"
        ) from error


def _split(fields: dict[str, Any]) -> PackedSplit:
    found = fields | {key: tuple(cast(list[Any], value)) for key, value in fields.items() if isinstance(value, list)}
    return PackedSplit(**cast(dict[str, Any], found))


def write_rows(
    root: Path,
    split: str,
    records: Iterable[Shaped[np.ndarray, " _"]],
    names: Iterable[str],
    labels: Int32[np.ndarray, " images"] | None,
    count: int,
) -> None:
    """Writes rows and names. records: of RECORD, one part of the `count` images after the other."""
    following = iter(tqdm(names, f"writing the names of {split}", count, unit=" images", delay=1))
    done = end = 0
    with (root / f"{split}.names").open("wb") as text, (root / f"{split}.rows.npy").open("wb") as written:
        header = {"descr": np.lib.format.dtype_to_descr(ROW), "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(written, header)
        for part in records:
            rows = np.zeros(len(part), ROW)
            for field in RECORD.names or ():
                rows[field] = part[field]
            encoded = [os.fsencode(name) for name in itertools.islice(following, len(part))]
            text.write(b"".join(encoded))
            rows["name_end"] = end + np.cumsum(list(map(len, encoded)))
            rows["label"] = -1 if labels is None else labels[done : done + len(part)]
            written.write(rows.tobytes())
            done, end = done + len(part), end + sum(map(len, encoded))


def open_columns(root: Path, name: str, split: PackedSplit) -> Columns:
    """Maps the files of a split.

    Raises: ValueError, FileNotFoundError for files that are missing, damaged, or of another number of images.
    """
    rows = Rows(root, name, split.images)
    targets = None
    if split.target_kind:
        values = _mapped(root, name, "targets", split.images)
        targets = Targets(split.target_kind, split.target_names, values)
    return Columns(
        rows,
        PackedNames(root, name, rows),
        _mapped(root, name, "labels", split.images, np.dtype(np.int32)) if split.labeled else None,
        _mapped(root, name, "groups", split.images) if split.grouped else None,
        targets,
    )


def on_disk(root: AnyPath, split: str) -> Path:
    """A folder with the files that `open_columns` maps. Those of a store are copied below ~/.cache/ssl_jax (or
    $XDG_CACHE_HOME), where the next start finds them."""
    if not isinstance(root, StorePath):
        return root
    folder = cache("packed", os.fspath(root).encode() + b"\0" + paths.read_bytes(root / FILE))
    folder.mkdir(parents=True, exist_ok=True)
    files = [f"{split}.names", *(f"{split}.{column}.npy" for column in ("rows", "labels", "groups", "targets"))]
    for name in sorted(set(files).intersection(paths.names(root))):
        if not (folder / name).exists():
            _copy(root / name, folder / name)
    return folder


def cache(what: str, of: bytes) -> Path:
    """The folder where files are kept from one start to the next. of: what they are made of."""
    return paths.caches() / what / hashlib.sha256(of).hexdigest()[:16]


def _copy(file: StorePath, to: Path) -> None:
    partial = to.with_name(f"{to.name}.{os.getpid()}.partial")  # several processes of a machine may copy at once
    with tqdm(desc=f"copying {file}", total=paths.size(file), unit="B", unit_scale=True, delay=1) as progress:
        paths.download(file, partial, progress.update)
    partial.replace(to)


def _mapped(root: Path, split: str, column: str, images: int, dtype: np.dtype | None = None) -> np.memmap:
    file = root / f"{split}.{column}.npy"
    try:
        found = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{file} is damaged: {error}; pack the images again, or copy it whole") from error
    if len(found) != images or found.dtype != (dtype or found.dtype):
        raise ValueError(
            f"{file} has {len(found):,} rows of {found.dtype} for {images:,} images; pack the images again"
        )
    return found

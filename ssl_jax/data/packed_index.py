"""The index of packed images: what is known of each, in files that are mapped to memory and read where they are needed.

    photos/ssl_jax_pack.json                        of each split: its images, classes, images a shard
    photos/train-00000-of-00012.array_record        the images
    photos/train.records.npy                        of each image: where its bytes are in its shard, their number, CRC
    photos/train.names  photos/train.ends.npy       all names in one text; where each ends in it
    photos/train.labels.npy  .groups.npy  .targets.npy      where there are any
    photos/train.unreadable.csv                     name and reason of the images that were left out

Opening it takes the same time and memory for any number of images.
"""

import dataclasses
import itertools
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from jaxtyping import Int32, Int64, Shaped, UInt8
from tqdm import tqdm

from ssl_jax.data.targets import Targets

FILE, FORMAT, VERSION = "ssl_jax_pack.json", "ssl_jax pack", 1
UNFINISHED, PLAN = "unfinished", "plan.json"  # folder of a pack that is not at its end, and what is planned
RECORD = np.dtype([("start", "<i8"), ("size", "<u4"), ("crc", "<u4")])
END = np.dtype("<i8")
NAMES_AT_ONCE = 2**16


class Names(Sequence[str]):
    """Names in one text. `ends`: where each of them ends in it."""

    def __init__(self, text: UInt8[np.ndarray, " bytes"], ends: Int64[np.ndarray, " names"]):
        self._text, self._ends = text, ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = int(self._ends[index - 1]) if index else 0
        return os.fsdecode(self._text[start : int(self._ends[index])].tobytes())


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


@dataclasses.dataclass(frozen=True)
class Columns:
    """Of each image, memory-mapped."""

    records: Shaped[np.ndarray, " images"]
    names: Names
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


def is_packed_whole(root: Path) -> bool:
    return (root / FILE).is_file()


def is_packed(root: Path) -> bool:
    """Raises: ValueError for a pack that is not at its end."""
    if is_packed_whole(root):
        return True
    if (root / UNFINISHED / PLAN).exists():
        raise ValueError(f"{str(root)!r} is packed in part; the same ssl_jax pack goes on with it")
    return False


def made_of(root: Path) -> dict[str, Any]:
    """What `write` was given. Raises: as `read`."""
    read(root)
    return json.loads((root / FILE).read_text())["made_of"]


def read(root: Path) -> dict[str, PackedSplit]:
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


def write_array(file: Path, parts: Iterable[Shaped[np.ndarray, " rows"]], count: int, dtype: np.dtype) -> None:
    """Writes an .npy file of `count` rows, one part after the other."""
    with file.open("wb") as written:
        _write_header(written, count, dtype)
        for part in parts:
            written.write(np.ascontiguousarray(part, dtype).tobytes())


def write_names(root: Path, split: str, names: Iterable[str], count: int) -> None:
    """Writes the names of `count` images."""
    following = iter(tqdm(names, f"writing the names of {split}", count, unit=" images", delay=1))
    end = 0
    with (root / f"{split}.names").open("wb") as text, (root / f"{split}.ends.npy").open("wb") as ends:
        _write_header(ends, count, END)
        while some := [os.fsencode(name) for name in itertools.islice(following, NAMES_AT_ONCE)]:
            found = end + np.cumsum(list(map(len, some)), dtype=END)
            text.write(b"".join(some))
            ends.write(found.tobytes())
            end = int(found[-1])


def _write_header(file: BinaryIO, count: int, dtype: np.dtype) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, header)


def open_columns(root: Path, name: str, split: PackedSplit) -> Columns:
    """Maps the files of a split.

    Raises: ValueError, FileNotFoundError for files that are missing, damaged, or of another number of images.
    """
    records, ends = _mapped(root, name, "records", split.images), _mapped(root, name, "ends", split.images)
    text = root / f"{name}.names"
    if text.stat().st_size != ends[-1] or records.dtype != RECORD:
        raise ValueError(
            f"{text} or {root / f'{name}.records.npy'} is damaged; pack the images again, or copy them whole"
        )
    targets = None
    if split.target_kind:
        values = _mapped(root, name, "targets", split.images)
        targets = Targets(split.target_kind, split.target_names, values)
    return Columns(
        records,
        Names(np.memmap(text, np.uint8, "r") if ends[-1] else np.zeros(0, np.uint8), ends),
        _mapped(root, name, "labels", split.images) if split.labeled else None,
        _mapped(root, name, "groups", split.images) if split.grouped else None,
        targets,
    )


def _mapped(root: Path, split: str, column: str, images: int) -> np.ndarray:
    file = root / f"{split}.{column}.npy"
    try:
        found = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{file} is damaged: {error}; pack the images again, or copy it whole") from error
    if len(found) != images:
        raise ValueError(f"{file} has {len(found):,} rows for {images:,} images; pack the images again")
    return found

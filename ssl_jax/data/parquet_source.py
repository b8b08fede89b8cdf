"""Parquet files of Hugging Face's `datasets` as sources of images.

The images are a column of structs {bytes, path}, or of bytes. The files' own metadata say which column it is, which one
holds the labels, and how the classes are called; without metadata it is the first such column, and `label`. A column
of lists of labels, `labels`, `label` or another one by the metadata, is `Source.targets`. A column `group` says what
each image belongs to.
"""

import json
import logging
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from tqdm import tqdm

from ssl_jax import paths
from ssl_jax.data import shards, splits, targets
from ssl_jax.data.formats import UndecodableImage, check_channels
from ssl_jax.data.formats.errors import undecodable
from ssl_jax.data.formats.stored import whole_file
from ssl_jax.data.record_source import RecordSource
from ssl_jax.data.sources import Source
from ssl_jax.data.threads import LastUsed
from ssl_jax.paths import AnyPath

CACHED_BYTES = 2**28  # of row groups that are kept
MAX_GROUP_BYTES = 2**30  # of the images of a row group, which is read whole


class Columns(NamedTuple):
    """`image`: its column. `nested`: whether that is a struct {bytes, path}. `label`: its column, None without labels.
    `class_names`: one for each label, () if the labels are not indices of any. `several`: the column of lists of
    labels, None without; `several_names`: as `class_names`, of these."""

    image: str
    nested: bool
    label: str | None
    class_names: tuple[str, ...]
    several: str | None
    several_names: tuple[str, ...]


class ParquetSource(RecordSource):
    """Images in Parquet files. A row group is read whole; the last ones, of CACHED_BYTES, are kept.

    Args:
      name: for messages and reports.
      files: in order.
      columns: of all files.
      class_names, several_names: of the labels, and of those in lists.
      channels: 1 or 3, of the images as they are read.
    Raises: ValueError for row groups of more than MAX_GROUP_BYTES, and for files that cannot be read.
    """

    def __init__(
        self,
        name: str,
        files: Sequence["_File"],
        columns: Columns,
        class_names: tuple[str, ...],
        several_names: tuple[str, ...],
        channels: int | None,
    ):
        labels = splits.indices([label for file in files for label in file.labels], class_names)
        groups = np.array([group for file in files for group in file.groups])
        listed = [path for file in files for path in file.paths]
        named = all(listed) and len(set(listed)) == len(listed)  # those of `datasets` may be the same in every folder
        names = listed if named else [f"{file.path.name}[{k}]" for file in files for k in range(file.count)]
        found = None
        if several_names:
            index = {label: k for k, label in enumerate(several_names)}
            several = [of for file in files for of in file.several]
            lists = [None if of is None else [index.get(label, -1) for label in of] for of in several]
            found = targets.from_lists(lists, several_names)
        super().__init__(
            name, names, labels, class_names, groups if len(groups) == len(names) else None, channels, found
        )
        self._files, self._columns = files, columns
        self._rows = LastUsed(self._read_row_group, operator.attrgetter("nbytes"), CACHED_BYTES)
        counts = [count for file in files for count in file.row_groups]
        self._ends = np.cumsum(counts)
        self._row_groups = [(file, k) for file in files for k in range(len(file.row_groups))]

    def _read_row_group(self, position: int) -> Any:
        """Its images."""
        (file, row_group), columns = self._row_groups[position], self._columns
        names = [f"{columns.image}.bytes", f"{columns.image}.path"] if columns.nested else [columns.image]
        with _parquet_file(file.path, file.metadata) as opened:
            (rows,) = opened.read_row_group(row_group, columns=names, use_threads=False).columns
        return rows

    def encoded(self, index: int):
        position, name = int(np.searchsorted(self._ends, index, side="right")), self._names[index]
        file, row_group = self._row_groups[position]
        try:
            rows = self._rows(position)
            value = rows[index - int(self._ends[position]) + file.row_groups[row_group]].as_py()
        except (OSError, ValueError, _arrow().ArrowException) as error:
            raise UndecodableImage(name, f"its row group cannot be read: {error}") from error
        if self._columns.nested and value is not None:
            data, path = value.get("bytes"), value.get("path")
            if data is None and path:
                with undecodable(name):
                    return whole_file(paths.join(file.path.parent, path))
            return self._whole(data, name)
        return self._whole(value, name)

    def _whole(self, data: bytes | None, name: str) -> bytes:
        if data is None:
            raise UndecodableImage(name, "there is no image in its row")
        return data

    def sizes(self):
        return [paths.size(file.path) for file in self._files]


def parquet_splits(text: str, channels: int | None) -> dict[str, Source]:
    """Split -> its images, all with the same class names. The names of the files say the splits: see data/shards.py.

    Args:
      text: the files: data/*.parquet, data/train-{00000..00003}-of-00004.parquet.
      channels: 1 or 3; images are converted as they are read.
    Raises: FileNotFoundError; ValueError for files that cannot be read, without images, or with other columns than the
      first one.
    """
    check_channels(channels)
    files = shards.expand(text)
    columns = _columns(files[0])
    of_file = {file: _File(file, columns) for file in tqdm(files, f"opening {text}", unit=" files", delay=1)}
    class_names = columns.class_names or splits.class_names(label for file in of_file.values() for label in file.labels)
    listed = {label for file in of_file.values() for of in file.several for label in of or () if label}
    several_names = columns.several_names or tuple(sorted(listed, key=splits.natural))
    return {
        split: ParquetSource(text, [of_file[file] for file in of], columns, class_names, several_names, channels)
        for split, of in shards.by_split(files).items()
    }


def has_images(path: AnyPath) -> bool:
    """Whether the file has images in it; otherwise it may be a list of files. Raises: as `parquet_splits`."""
    with _parquet_file(path) as file:
        schema = file.schema_arrow
    return "path" not in schema.names or _image_column(schema, _features(schema)) is not None


def _columns(path: AnyPath) -> Columns:
    types = _arrow().types
    with _parquet_file(path) as file:
        schema = file.schema_arrow
    features = _features(schema)
    image = _image_column(schema, features)
    if image is None:
        raise ValueError(
            f"{path} has neither images, as a column of bytes or of structs {{bytes, path}}, nor a column path of a "
            f"list of files; its columns are {', '.join(schema.names)}"
        )
    classes = {name: names for name, of in features.items() if (names := _class_names(of))}
    kinds = {field.name: field.type for field in schema}
    lists = {name for name, kind in kinds.items() if _is_list(kind) and _is_label(kind.value_type)}
    label = next((name for name in ("label", *classes) if name in kinds and name not in lists), None)
    if label is not None and not _is_label(kinds[label]):
        logging.warning(
            "%s: the column %s is not used: labels are integers, text, or lists of these, not %s",
            path,
            label,
            kinds[label],
        )
        label = None
    several = next((name for name in ("labels", "label", *classes) if name in lists), None)
    return Columns(
        image,
        types.is_struct(kinds[image]),
        label,
        classes.get(label or "", ()),
        several,
        classes.get(several or "", ()),
    )


def _is_label(kind: Any) -> bool:
    types = _arrow().types
    return types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind)


def _is_list(kind: Any) -> bool:
    types = _arrow().types
    return types.is_list(kind) or types.is_large_list(kind)


def _class_names(feature: dict[str, Any]) -> tuple[str, ...]:
    """Of a feature as `datasets` describes it: a ClassLabel, or a list of such. () for another one."""
    element: Any = feature.get("feature")
    of = cast("dict[str, Any]", element) if isinstance(element, dict) else feature
    return tuple(of.get("names", ())) if of.get("_type") == "ClassLabel" else ()


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """Column -> what `datasets` says of it; {} for files that it did not write."""
    try:
        metadata: dict[bytes, bytes] = schema.metadata or {}
        found: dict[str, Any] = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        # Its first versions wrote a list of a feature as [feature].
        lists = {
            name: {"feature": cast("list[Any]", of)[0]} for name, of in found.items() if isinstance(of, list) and of
        }
        return {name: of for name, of in (found | lists).items() if isinstance(of, dict) and name in schema.names}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _image_column(schema: Any, features: dict[str, dict[str, Any]]) -> str | None:
    types = _arrow().types

    def holds_bytes(kind: Any) -> bool:
        if types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0 and holds_bytes(kind.field("bytes").type)
        return types.is_binary(kind) or types.is_large_binary(kind)

    named = [name for name, of in features.items() if of.get("_type") == "Image"]
    found = [field.name for field in schema if holds_bytes(field.type)]
    return next((name for name in named + found if name in found), None)


class _File:
    """What is known of a file without its images. `row_groups`: numbers of their rows. `labels`, `groups`, `paths`: of
    each row, "" for none; groups and paths are [] if there are none at all. `several`: the list of labels of each row,
    None where it is null; [] without lists."""

    def __init__(self, path: AnyPath, columns: Columns):
        self.path = path
        with _parquet_file(path) as file:
            names: list[str] = file.schema_arrow.names
            wanted = {name for name in (columns.image, columns.label, columns.several) if name is not None}
            if missing := wanted.difference(names):
                raise ValueError(f"{path} has no column {', '.join(sorted(missing))}, as the first file has")
            self.metadata = file.metadata
            groups = [self.metadata.row_group(k) for k in range(file.num_row_groups)]
            self.count, self.row_groups = self.metadata.num_rows, [group.num_rows for group in groups]
            for group in groups:
                chunks = [group.column(k) for k in range(group.num_columns)]
                size = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] == columns.image)
                if size > MAX_GROUP_BYTES:
                    raise ValueError(
                        f"{path}: the images of a row group take {size:,} bytes, and an image is read with its whole "
                        "group; write the file with row_group_size=100"
                    )
            small = [name for name in (columns.label, columns.several, "group") if name in names]
            small += [f"{columns.image}.path"] if columns.nested else []
            try:
                table = file.read(columns=small)
            except (OSError, _arrow().ArrowException) as error:
                raise ValueError(f"{path} is damaged: {error}") from error
        self.labels = (
            [] if columns.label is None else _labels(path, table[columns.label].to_pylist(), columns.class_names)
        )
        self.several = (
            [] if columns.several is None else _lists(path, table[columns.several].to_pylist(), columns.several_names)
        )
        self.groups: list[str] = list(map(str, table["group"].to_pylist())) if "group" in small else []
        rows: list[Any] = table[columns.image].to_pylist() if columns.image in table.column_names else []
        self.paths: list[str] = [(row and row.get("path")) or "" for row in rows] or [""] * self.count


def _labels(path: AnyPath, labels: list[Any], class_names: tuple[str, ...]) -> list[str]:
    """Labels as text, "" for none. Integers are indices into class_names, if there are any."""
    if not (class_names and any(isinstance(label, int) for label in labels)):
        return ["" if label is None else str(label) for label in labels]
    if wrong := [label for label in labels if label is not None and not -1 <= label < len(class_names)]:
        raise ValueError(f"{path}: a label is {wrong[0]}, for {len(class_names)} class names")
    return ["" if label is None or label < 0 else class_names[label] for label in labels]


def _lists(path: AnyPath, lists: list[Any], class_names: tuple[str, ...]) -> list[list[str] | None]:
    """As `_labels`, for lists of labels; None for null.

    Raises: ValueError for integers without class names of which one stands twice in a list: 1 and 0 for each label.
    """
    found = [None if of is None else _labels(path, of, class_names) for of in lists]
    twice = [of for of in lists if of and isinstance(of[0], int) and len(set(of)) < len(of)]
    if twice and not class_names:
        raise ValueError(
            f"{path}: a list of labels has a label twice, {twice[0]}. A list holds the labels that an image has; "
            "save 1 and 0 for each label as arrays, or as columns label_NAME of a list of files"
        )
    return found


def _parquet_file(path: AnyPath, metadata: Any = None) -> Any:
    """Raises: ValueError if pyarrow is missing, or the file is no Parquet file."""
    try:
        arrow = _arrow()
    except ImportError as error:
        raise ValueError(f"reading {path.name} needs pyarrow: pip install 'ssl_jax[parquet]'") from error
    try:
        # Of a file in a store, pyarrow reads only the columns and the row groups that it needs.
        source = paths.seekable(path) if paths.is_remote(path) else path
        return arrow.parquet.ParquetFile(source, metadata=metadata)
    except (OSError, arrow.ArrowException) as error:
        raise ValueError(f"{path} is no Parquet file, or damaged: {error}") from error


def _arrow() -> Any:
    """pyarrow, which has no types. Raises: ImportError."""
    import pyarrow
    import pyarrow.parquet  # pyright: ignore[reportUnusedImport]

    return pyarrow

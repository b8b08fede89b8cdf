"""Lists of images: a table with a row for each file, as `.csv` or `.parquet`.

path            label    split   group
scans/01a.png   benign   train   patient 1
scans/01b.png   benign   train   patient 1
scans/02a.png            test    patient 2

path            label_pneumonia   label_effusion   or   target_age    several labels, 1 or 0; or measurements
scans/01a.png   1                 0                     63.5
scans/01b.png                     1                     41          empty: not known

path               image    band
t01/B02.tif        t01      B02
t01/B10.tif        t01      B10      `image`: which image it is a band of; with label, split and group if there are
"""

import csv
import difflib
import io
import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from tqdm import tqdm

from ssl_jax import paths
from ssl_jax.data import targets
from ssl_jax.data.splits import natural
from ssl_jax.data.targets import Targets
from ssl_jax.paths import AnyPath

ENDINGS = (".csv", ".parquet")
OF_IMAGE = ("label", "split", "group")  # the same in all rows of an image
COLUMNS = ("path", *OF_IMAGE, "image", "band")
OUTPUTS = {"label_": targets.MULTILABEL, "target_": targets.REGRESSION}  # beginnings of names of columns
NAMED = 3  # rows or values that a message names
SEPARATORS = (",", ";", "\t")


class Table(NamedTuple):
    """`columns`: name -> text of each row, "" for none. `rows`: the rows' numbers, for messages."""

    columns: dict[str, list[str]]
    rows: list[int]


class Image(NamedTuple):
    """`files`: one, or one for each band, in the order of `Listed.bands`; relative to the list's folder or absolute."""

    name: str
    files: tuple[str, ...]
    label: str
    split: str
    group: str


class Listed(NamedTuple):
    """`bands`: names in natural order (B2 before B10), () if each image is one file. `columns`: those that are used.
    `targets`: of the images, None if there are none."""

    images: list[Image]
    bands: tuple[str, ...]
    columns: frozenset[str]
    targets: Targets | None


def read(path: AnyPath) -> Listed:
    """The images of a list.

    Its columns are path, and optionally label, split and group (empty for an image without a label; otherwise filled
    in), image and band for images of one file a band, and numbers to predict: columns label_NAME of 1 and 0, or columns
    target_NAME (empty where it is not known). Other columns are left out, with a message.

    Raises: FileNotFoundError for a list, or files in it, that are not there; ValueError, which names the rows, for a
      list that cannot be read, misspelt or missing columns, empty fields, a file that is named twice, bands that do not
      make whole images, a group in two splits, and numbers to predict that are none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}{paths.looked_from(path)}")
    table = _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    columns, rows = table
    _check_columns(path, table)
    for name in set(COLUMNS) - {"label"} & set(columns):
        _none(path, [row for row, text in zip(rows, columns[name], strict=True) if not text], f"have no {name}")
    unlabeled = [row for row, text in zip(rows, columns.get("label", ()), strict=False) if not text]
    if unlabeled:
        logging.warning("%s: rows without a label, which are not evaluated on: %s", path, _some(unlabeled, len(rows)))
    first: dict[str, int] = {}
    twice = [row for row, file in zip(rows, columns["path"], strict=True) if first.setdefault(file, row) != row]
    _none(path, twice, "name a file that an earlier row names")
    _check_files(path, table)
    images, bands = _with_bands(path, table) if "band" in columns else (_of_rows(table), ())
    _check_groups(path, images)
    return Listed(images, bands, frozenset(columns), _targets(path, table, images))


def _read_csv(path: AnyPath) -> Table:
    """The first row has the columns' names; separated by commas, or else semicolons or tabs. UTF-8."""
    try:
        with io.TextIOWrapper(paths.opened(path), encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            file.seek(0)
            separator = next((one for one in SEPARATORS if one in header), ",")
            reader = csv.DictReader(file, delimiter=separator, strict=True)
            names = [name.strip() for name in reader.fieldnames or ()]
            if len(set(names)) < len(names):
                raise ValueError(f"{path}: two columns have the same name: {', '.join(names)}")
            columns: dict[str, list[str]] = {name: [] for name in names}
            rows: list[int] = []
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(
                        f"{path}: row {reader.line_num} has not {len(names)} fields, one a column "
                        f"({', '.join(names)}); "
                        "put a field that holds a comma into quotes"
                    )
                rows.append(reader.line_num)
                for name, text in zip(names, row.values(), strict=True):
                    columns[name].append(text.strip())
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no table of comma-separated values in UTF-8: {error}") from error
    return Table(columns, rows)


def _read_parquet(path: AnyPath) -> Table:
    """Numbers are turned into text. Rows are counted from 1."""
    try:
        import pyarrow
        import pyarrow.parquet  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise ValueError(
            f"reading {path.name} needs pyarrow: pip install 'ssl_jax[parquet]', or save it as .csv"
        ) from error
    arrow = cast(Any, pyarrow)  # has no types
    try:
        with arrow.parquet.ParquetFile(paths.opened(path) if paths.is_remote(path) else path) as file:
            names: list[str] = file.schema_arrow.names
            table = file.read(columns=[name for name in names if name in COLUMNS or _kind(name)])
            rows = list(range(1, file.metadata.num_rows + 1))
    except (OSError, arrow.ArrowException) as error:
        raise ValueError(f"{path} is no Parquet file, or damaged: {error}") from error
    found: dict[str, list[str]] = {name: list(map(_text, table[name].to_pylist())) for name in table.column_names}
    return Table({name: found.get(name, []) for name in names}, rows)


def _text(value: Any) -> str:
    if value is None or value != value:  # NaN, as pandas has it where there is nothing
        return ""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def _check_columns(path: AnyPath, table: Table) -> None:
    names = ", ".join(table.columns) or "none"
    near = {
        name: difflib.get_close_matches(name.lower(), COLUMNS, n=1, cutoff=0.8)
        for name in table.columns
        if name not in COLUMNS and not _kind(name)
    }
    for name, meant in near.items():
        if meant and meant[0] not in table.columns:
            raise ValueError(
                f"{path} has a column {name!r}; call it {meant[0]!r} if it is the {meant[0]}, or remove it"
            )
    if "path" not in table.columns:
        raise ValueError(f"{path} has no column 'path', only {names}; call the column of the files so")
    if ("image" in table.columns) != ("band" in table.columns):
        raise ValueError(
            f"{path} has one of the columns image and band; for images of one file a band give both, which image and "
            "which band of it the file is, otherwise none"
        )
    if near:
        logging.warning("%s: columns that are not used: %s", path, ", ".join(near))
    if not table.rows:
        raise ValueError(f"{path} has no rows")


def _kind(column: str) -> str:
    """What numbers a column has to predict; "" if none."""
    return next((kind for start, kind in OUTPUTS.items() if column.startswith(start)), "")


def _targets(path: AnyPath, table: Table, images: Sequence[Image]) -> Targets | None:
    of_kind = {kind: [column for column in table.columns if _kind(column) == kind] for kind in OUTPUTS.values()}
    found = {kind: columns for kind, columns in of_kind.items() if columns}
    if not found:
        return None
    if len(found) > 1:
        raise ValueError(
            f"{path} has columns of both kinds, {', '.join(columns[0] for columns in found.values())}; they are "
            "evaluated in different ways, so keep one kind"
        )
    ((kind, columns),) = found.items()
    row_of = {file: k for k, file in enumerate(table.columns["path"])}
    values = [[_number(path, column, table, row_of[image.files[0]]) for column in columns] for image in images]
    names = [column.partition("_")[2] for column in columns]
    return targets.make(values, names, kind, f"{path}: columns {', '.join(columns)}")


def _number(path: AnyPath, column: str, table: Table, row: int) -> float:
    text = table.columns[column][row]
    try:
        return float(text) if text else float("nan")
    except ValueError:
        raise ValueError(
            f"{path}: row {table.rows[row]} has {text!r} in column {column}; give a number, or nothing where it is not "
            "known"
        ) from None


def _check_files(path: AnyPath, table: Table) -> None:
    files = tqdm(table.columns["path"], f"looking for the files of {path}", unit=" files", delay=1)
    listed: dict[AnyPath, set[str]] = {}  # folder in a store -> its files

    def is_there(file: str) -> bool:
        found = paths.join(path.parent, file)
        if not paths.is_remote(found):
            return os.path.exists(found)
        if found.parent not in listed:
            listed[found.parent] = set(paths.names(found.parent))
        return found.name in listed[found.parent]

    gone = [k for k, file in enumerate(files) if not is_there(file)]
    if gone:
        named = [f"row {table.rows[k]} {table.columns['path'][k]!r}" for k in gone]
        raise FileNotFoundError(
            f"{path}: files that are not there: {_some(named, len(table.rows))}; paths are absolute or relative to "
            f"{paths.absolute(path.parent)}"
        )


def _of_rows(table: Table) -> list[Image]:
    files, absent = table.columns["path"], [""] * len(table.rows)
    rest = (table.columns.get(name, absent) for name in OF_IMAGE)
    return [Image(file, (file,), *texts) for file, *texts in zip(files, *rest, strict=True)]


def _with_bands(path: AnyPath, table: Table) -> tuple[list[Image], tuple[str, ...]]:
    columns, rows = table
    bands = tuple(sorted(set(columns["band"]), key=natural))
    of_image: dict[str, dict[str, int]] = defaultdict(dict)  # image -> band -> position
    twice = [
        rows[k]
        for k, (image, band) in enumerate(zip(columns["image"], columns["band"], strict=True))
        if of_image[image].setdefault(band, k) != k
    ]
    _none(path, twice, "have a band that an earlier row has for the same image")
    images: list[Image] = []
    short: list[str] = []
    differing: list[str] = []
    for name, positions in of_image.items():
        short += [name] * (len(positions) < len(bands))
        texts = [tuple(columns[of][k] for of in OF_IMAGE if of in columns) for k in positions.values()]
        differing += [name] * (len(set(texts)) > 1)
        first = next(iter(positions.values()))
        rest = (columns[of][first] if of in columns else "" for of in OF_IMAGE)
        images.append(Image(name, tuple(columns["path"][positions[b]] for b in bands if b in positions), *rest))
    if short:
        raise ValueError(
            f"{path}: images that have not all of the {len(bands)} bands {', '.join(bands)}: {_some(short)}; list the "
            "missing ones, or remove these images"
        )
    if differing:
        raise ValueError(
            f"{path}: images whose rows differ in label, split or group: {_some(differing)}; make them alike"
        )
    return images, bands


def _check_groups(path: AnyPath, images: Sequence[Image]) -> None:
    of_group: defaultdict[str, set[str]] = defaultdict(set)
    for image in images:
        of_group[image.group].add(image.split)
    divided = [group for group, splits in of_group.items() if group and len(splits) > 1]
    if divided:
        raise ValueError(
            f"{path}: groups in more than one split: {_some(divided)}; put all images of a group into one, or leave "
            "out the column split: the images are then divided by group"
        )


def _none(path: AnyPath, rows: Sequence[int], fault: str) -> None:
    """Raises: ValueError if there are rows with the fault."""
    if rows:
        raise ValueError(f"{path}: rows that {fault}: {_some(rows)}; change or remove them")


def _some(names: Sequence[Any], of: int | None = None) -> str:
    """ "3 (row 4, row 5, row 9)": how many, and the first `NAMED` of them."""
    first = ", ".join(map(str, names[:NAMED])) + (", ..." if len(names) > NAMED else "")
    return f"{len(names):,}{f' of {of:,}' if of else ''} ({first})"

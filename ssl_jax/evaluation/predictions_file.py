"""Predictions of a classifier as a file, for other programs: a CSV or Parquet."""

import csv
from typing import Any

from ssl_jax.data.targets import MULTILABEL
from ssl_jax.evaluation.classifier import Classifier, Predictions
from ssl_jax.evaluation.embedding import check_format
from ssl_jax.evaluation.tasks import CLASSES
from ssl_jax.paths import AnyPath
from ssl_jax.workdir import files

FORMATS = (".csv", ".parquet")


def save(path: AnyPath, found: Predictions, classifier: Classifier) -> None:
    """Writes the file whole or not at all. Columns: name; of classes then class and probability (of that class), of
    several labels then labels; and one of numbers named after each class, label or measurement.

    Raises: as `embedding.check_format`.
    """
    check_format(path, FORMATS)
    columns: dict[str, Any] = {"name": found.names}
    if classifier.kind == CLASSES:
        columns |= {"class": found.classes, "probability": found.values.max(axis=1)}
    if classifier.kind == MULTILABEL:
        columns |= {"labels": found.classes}
    # A class may be called "class".
    columns |= {
        name if name not in columns else f"{name}_": found.values[:, i] for i, name in enumerate(classifier.names)
    }
    (_save_parquet if path.suffix == ".parquet" else _save_csv)(path, columns)


def _save_csv(path: AnyPath, columns: dict[str, Any]) -> None:
    with files.replacing(path) as file:
        table = csv.writer(_Lines(file))
        table.writerow(columns)
        for row in zip(*columns.values(), strict=True):
            table.writerow([value if isinstance(value, str) else f"{value:.6g}" for value in row])


def _save_parquet(path: AnyPath, columns: dict[str, Any]) -> None:
    import pyarrow
    import pyarrow.parquet

    with files.replacing(path) as file:
        pyarrow.parquet.write_table(pyarrow.table({name: pyarrow.array(c) for name, c in columns.items()}), file)


class _Lines:
    """Writes text to a binary file. File names may hold characters that UTF-8 has not; those are escaped."""

    def __init__(self, file: Any):
        self._file = file

    def write(self, text: str) -> int:
        return self._file.write(text.encode("utf-8", "backslashreplace"))

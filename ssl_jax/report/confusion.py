"""Which classes a classifier takes for each other."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from ssl_jax.report.images import class_name
from ssl_jax.report.names import short

# More rows and columns could not be read at a phone's width.
MOST_CLASSES, MOST_MISTAKES, LONGEST_NAME = 12, 5, 16


@dataclasses.dataclass(frozen=True)
class Mistake:
    label: str
    taken_for: str
    percent: float  # of the images of `label`


@dataclasses.dataclass(frozen=True)
class Confusion:
    """percents: [i, j] is how many percent of class i's images were taken for class j. names: names of these shown
    classes, long ones cut. total: number of classes, shown or not. mistakes: the most frequent ones over all classes,
    most frequent first."""

    percents: Float[np.ndarray, "classes classes"]
    names: list[str]
    total: int
    mistakes: list[Mistake]


def confusion(predictions: Mapping[str, np.ndarray]) -> Confusion | None:
    """The confusion of all classes, or of the MOST_CLASSES with the most mistakes; None if nothing was predicted.

    predictions: "labels" and "predictions" int [n] >= 0, "class_names".
    """
    if not predictions:
        return None
    # Only over classes that occur, so that a class 10^9 in a damaged file takes no memory.
    classes, index = np.unique(np.stack([predictions["labels"], predictions["predictions"]]), return_inverse=True)
    counts = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(counts, tuple(index.reshape(2, -1)), 1)
    percents = 100.0 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = [class_name(int(label), predictions["class_names"]) for label in classes]
    wrong = counts * ~np.eye(len(classes), dtype=bool)
    shown = np.sort(np.argsort(-(wrong.sum(axis=0) + wrong.sum(axis=1)), kind="stable")[:MOST_CLASSES])
    return Confusion(
        percents[np.ix_(shown, shown)],
        [short(names[i], LONGEST_NAME) for i in shown],
        len(classes),
        [Mistake(names[i], names[j], float(percents[i, j])) for i, j in _most(percents * (wrong > 0))],
    )


def _most(percents: Float[np.ndarray, "classes classes"]) -> list[tuple[int, int]]:
    """(row, column) of the largest entries above 0."""
    order = np.argsort(-percents, axis=None, kind="stable")[:MOST_MISTAKES]
    pairs: Int[np.ndarray, "n 2"] = np.stack(np.unravel_index(order, percents.shape), axis=1)
    return [(int(i), int(j)) for i, j in pairs if percents[i, j] > 0]

"""How often predictions are right: as a share of the images, and as a mean over the classes.

The two differ where one class has most of the images. Always predicting it is right for most images, but for one class
only.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer


class Majority(NamedTuple):
    """The class with the most images; the first one if several have as many.

    percent: its share of the images with a label.
    """

    label: int
    percent: float


def majority(labels: Integer[np.ndarray, " images"], num_classes: int) -> Majority:
    """The largest class. labels: in 0 .. num_classes - 1, at least one."""
    counts = np.bincount(labels, minlength=num_classes)
    return Majority(int(np.argmax(counts)), 100.0 * float(counts.max() / counts.sum()))


def top1(
    predictions: Integer[np.ndarray, "*draws images"], labels: Integer[np.ndarray, " images"]
) -> Float[np.ndarray, "*draws"]:
    """Percent of the images whose class is predicted."""
    return np.asarray(100.0 * np.mean(predictions == labels, axis=-1))


def class_mean(
    predictions: Integer[np.ndarray, "*draws images"], labels: Integer[np.ndarray, " images"]
) -> Float[np.ndarray, "*draws"]:
    """The percent of each class's images whose class is predicted, averaged over the classes that `labels` has.

    Also called balanced accuracy. Predicting always the same class gives 100 / classes, however many images it has.
    """
    present, inverse = np.unique(labels, return_inverse=True)
    weights = 1.0 / (np.bincount(inverse) * len(present))
    return np.asarray(100.0 * np.sum((predictions == labels) * weights[inverse], axis=-1))

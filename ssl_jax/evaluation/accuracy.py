"""How often predictions are right: of all images alike, and of all classes alike.

Where one class has most of the images the two differ: who always names it is right for most images, and for one class.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer


class Majority(NamedTuple):
    """The class that most images are of; of equals the first. percent: its share of the images with a label."""

    label: int
    percent: float


def majority(labels: Integer[np.ndarray, " images"], num_classes: int) -> Majority:
    """Of labels in 0 .. num_classes - 1, at least one."""
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
    """The mean over the classes that `labels` has of the percent of its images whose class is predicted.

    Also called balanced accuracy. Always the same class: 100 / classes, however many images it has.
    """
    present, inverse = np.unique(labels, return_inverse=True)
    weights = 1.0 / (np.bincount(inverse) * len(present))
    return np.asarray(100.0 * np.sum((predictions == labels) * weights[inverse], axis=-1))

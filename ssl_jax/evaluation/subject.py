"""Input and output of a protocol: a subject, and its scores."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from ssl_jax.data.normalization import Normalization
from ssl_jax.data.sources import Source
from ssl_jax.evaluation.accuracy import class_mean, top1
from ssl_jax.evaluation.features import Batches, Extracted, read_batches
from ssl_jax.weights import Backbone

# Full name, such as "linear/all/top1" -> score. A score has "mean" and "std" over seeds, both in percent, and the
# settings behind it. If it is an accuracy, it also has "class_mean", where each class counts alike: see
# `accuracy.class_mean`.
Scores = dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Labeled:
    """Frozen features of labeled images. Labels are in 0 .. num_classes - 1.

    groups: what each training image belongs to; None if that is not known.
    """

    train: Float[np.ndarray, "train *tokens dim"]
    train_labels: Int[np.ndarray, " train"]
    test: Float[np.ndarray, "test *tokens dim"]
    test_labels: Int[np.ndarray, " test"]
    num_classes: int
    groups: Shaped[np.ndarray, " train"] | None = None

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        return self.train, self.train_labels, self.test, self.test_labels

    @property
    def fewest(self) -> int:
        """The number of training images of the smallest class."""
        return int(np.bincount(self.train_labels, minlength=self.num_classes).min())


@dataclasses.dataclass(frozen=True)
class Images:
    """The images to measure on.

    image_size: (height, width) in pixels that they are read at. normalization: of the backbone. memory_bytes: a source
    that takes no more than this is kept decoded in memory; otherwise it is read again each time.
    """

    train: Source
    test: Source
    image_size: tuple[int, int]
    normalization: Normalization
    memory_bytes: int

    @functools.cached_property
    def batches(self) -> Mapping[str, Batches]:
        """The batches of "train" and "test"."""
        read = functools.partial(
            read_batches,
            image_size=self.image_size,
            pixel_bytes=self.normalization.pixel_bytes,
            memory_bytes=self.memory_bytes,
        )
        return {"train": read(self.train), "test": read(self.test)}


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is measured: features of the images, and the network if they come from one.

    name: for messages. frozen: the features; None if only protocols that train the network are measured. backbone: None
    if the features come from no network, such as pixels.
    """

    name: str
    frozen: Labeled | None
    images: Images
    backbone: Backbone | None = None

    @property
    def features(self) -> Labeled:
        assert self.frozen is not None, self.name
        return self.frozen

    @property
    def network(self) -> Backbone:
        """The backbone, for a subject that has one. Protocols that need it are measured on no other subject."""
        assert self.backbone is not None, self.name
        return self.backbone


def labeled(found: Extracted) -> Extracted:
    """Without the images whose label is -1."""
    return Extracted(*(rows[found.labels >= 0] for rows in found))


def as_labeled(train: Extracted, test: Extracted, source: Source) -> Labeled:
    """Of the training images of `source` and of test images. Those without a label (-1) are left out."""
    train, test = labeled(train), labeled(test)
    groups = None if source.groups is None else source.groups[train.index]
    return Labeled(
        train.features, train.labels, test.features, test.labels, num_classes=len(source.class_names), groups=groups
    )


def enough(fewest: int, per_class: int | None, what: str) -> bool:
    """Whether the smallest class, which has `fewest` images, has `per_class` labels. Prints a message if not."""
    if per_class is None or per_class <= fewest:
        return True
    print(f"{what} with {per_class} labels per class left out: a class has only {fewest} images")
    return False


def enough_neighbors(images: int, k: int) -> bool:
    """Whether there are at least `k` images. Prints a message if not."""
    if k <= images:
        return True
    print(f"kNN with k={k} left out: there are only {images} labelled images to look among")
    return False


def score(predictions: Int[np.ndarray, "draws images"], labels: Int[np.ndarray, " images"]) -> dict[str, Any]:
    """Accuracy in percent, its standard deviation over the draws (unbiased; 0 for one), and the mean over classes."""
    accuracies = top1(predictions, labels)
    return dict(
        mean=float(np.mean(accuracies)),
        std=float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else 0.0,
        class_mean=float(np.mean(class_mean(predictions, labels))),
    )

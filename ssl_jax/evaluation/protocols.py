"""Protocols by name, of frozen features: which numbers each gives, and with which settings."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ssl_jax.evaluation import clustering, intervals, knn, linear, prototypes, retrieval, sgd_probe
from ssl_jax.evaluation.probe_recipes import RECIPES

# Score: "mean" and "std" over seeds, both in percent, and how it came about; by its full name, "linear/all/top1".
Scores = dict[str, dict[str, Any]]

KNN_K, KNN_TEMPERATURE = (20, 200), 0.07
KNN_SWEEP_K, KNN_SWEEP_TEMPERATURES = (10, 20, 100, 200), (0.07, 0.1)
LABELS_PER_CLASS = (10, 100, None)  # None: all
FEW_LABELS_PER_CLASS, SHARES = (2, 5), (0.01, 0.1)
PROTOTYPES_PER_CLASS, WAYS, SHOTS = (1, 2, 5, 10), 5, (1, 5)
RETRIEVED = (1, 5, 10)


@dataclasses.dataclass(frozen=True)
class Labeled:
    """Frozen features of labeled images. Labels are in 0 .. num_classes - 1."""

    train: Float[np.ndarray, "train dim"]
    train_labels: Int[np.ndarray, " train"]
    test: Float[np.ndarray, "test dim"]
    test_labels: Int[np.ndarray, " test"]
    num_classes: int

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        return self.train, self.train_labels, self.test, self.test_labels

    @property
    def fewest(self) -> int:
        """Training images of the smallest class."""
        return int(np.bincount(self.train_labels, minlength=self.num_classes).min())


def weighted_knn(data: Labeled, k: tuple[int, ...] = KNN_K, temperature: float = KNN_TEMPERATURE) -> Scores:
    predictions = knn.weighted_knn(
        data.train, data.train_labels, data.test, num_classes=data.num_classes, k=k, temperature=temperature
    )
    return {
        f"knn/k{count}_t{temperature}/top1": dict(mean=100 * float(np.mean(predicted == data.test_labels)), std=0.0)
        for count, predicted in predictions.items()
    }


def knn_sweep(data: Labeled) -> Scores:
    """All that InstDisc and DINO report."""
    found: Scores = {}
    for temperature in KNN_SWEEP_TEMPERATURES:
        found |= weighted_knn(data, KNN_SWEEP_K, temperature)
    return found


def linear_probes(data: Labeled, labels_per_class: tuple[int | None, ...] = LABELS_PER_CLASS) -> Scores:
    """The score with all labels also has the "predictions", classes of the test images."""
    found: Scores = {}
    for per_class in labels_per_class:
        if enough(data.fewest, per_class, "linear probe"):
            label_set = "all" if per_class is None else f"{per_class}_per_class"
            found[f"linear/{label_set}/top1"] = _linear(data, per_class)
    return found


def low_shot(data: Labeled) -> Scores:
    """Linear probes with 2 and 5 labels per class, and with 1 and 10 percent of them: of as many labels in each class
    as that share of the smallest has, two at least."""
    found = linear_probes(data, FEW_LABELS_PER_CLASS)
    for share in SHARES:
        per_class = max(round(share * data.fewest), 2)
        if enough(data.fewest, per_class, "linear probe"):
            found[f"linear/{round(100 * share)}_percent/top1"] = _linear(data, per_class) | {"per_class": per_class}
    return found


def nearest_prototypes(data: Labeled) -> Scores:
    """By the nearest class mean: of all classes with some labels of each, and episodes of five classes of the test
    images."""
    found: Scores = {}
    for per_class in PROTOTYPES_PER_CLASS:
        if enough(data.fewest, per_class, "nearest class mean"):
            found[f"prototypes/{per_class}_per_class/top1"] = _interval(
                prototypes.nearest_class_mean(
                    *data.arrays,
                    num_classes=data.num_classes,
                    per_class=per_class,
                )
            )
    if data.num_classes >= WAYS:
        for shots in SHOTS:
            found[f"prototypes/{WAYS}_way_{shots}_shot/top1"] = _interval(
                prototypes.few_shot(data.test, data.test_labels, num_classes=data.num_classes, ways=WAYS, shots=shots)
            )
    return found


def cluster(data: Labeled) -> Scores:
    found = clustering.kmeans_agreement(data.train, data.test, data.test_labels, num_classes=data.num_classes)
    return {
        f"clustering/{way}/{measure}": dict(mean=value, std=0.0)
        for way, agreement in found.items()
        for measure, value in agreement._asdict().items()
    }


def retrieve(data: Labeled) -> Scores:
    """Test images looked up among the training images."""
    found = retrieval.retrieve(
        data.test, data.test_labels, data.train, data.train_labels, num_classes=data.num_classes, k=RETRIEVED
    )
    measured = {"map": found.mean_average_precision} | {f"recall_at_{k}": value for k, value in found.recall.items()}
    return {f"retrieval/{name}": dict(mean=value, std=0.0) for name, value in measured.items()}


def sgd(data: Labeled, recipe: str) -> Scores:
    """A paper's linear probe, on features of images that are not augmented."""
    found = sgd_probe.sgd_probe(
        *data.arrays,
        num_classes=data.num_classes,
        recipe=RECIPES[recipe],
    )
    settings = ("lr", "weight_decay", "peak_lr", "batch_size", "steps")
    return {
        f"probe/{recipe}/top1": dict(mean=found.accuracy, std=0.0, **{name: getattr(found, name) for name in settings})
    }


PROTOCOLS: dict[str, Callable[[Labeled], Scores]] = {
    "knn": weighted_knn,
    "knn_sweep": knn_sweep,
    "linear": linear_probes,
    "low_shot": low_shot,
    "prototypes": nearest_prototypes,
    "clustering": cluster,
    "retrieval": retrieve,
    **{f"probe_{recipe}": functools.partial(sgd, recipe=recipe) for recipe in RECIPES},
}


def enough(fewest: int, per_class: int | None, what: str) -> bool:
    """Whether the smallest class, of `fewest` images, has so many labels to give; says so where it has not."""
    if per_class is None or per_class <= fewest:
        return True
    print(f"{what} with {per_class} labels per class left out: a class has only {fewest} images")
    return False


def _linear(data: Labeled, per_class: int | None) -> dict[str, Any]:
    probe = linear.linear_probe(
        *data.arrays,
        num_classes=data.num_classes,
        per_class=per_class,
    )
    score = dict(mean=probe.mean, std=probe.std, accuracies=list(probe.accuracies), strengths=list(probe.strengths))
    return score | ({"predictions": probe.predictions[0]} if per_class is None else {})


def _interval(found: intervals.Interval) -> dict[str, Any]:
    return dict(mean=found.mean, std=found.std, low=found.low, high=found.high)

"""Protocols for frozen features: which scores each gives, and with which settings."""

from typing import Any

import numpy as np
from jaxtyping import Int

from ssl_jax.evaluation import clustering, knn, linear, prototypes, retrieval, sgd_probe
from ssl_jax.evaluation.probe_recipes import RECIPES
from ssl_jax.evaluation.subject import Labeled, Scores, enough, enough_neighbors, score

KNN_K, KNN_TEMPERATURE = (20, 200), 0.07
KNN_SWEEP_K, KNN_SWEEP_TEMPERATURES = (10, 20, 100, 200), (0.07, 0.1)
LABELS_PER_CLASS = (10, 100, None)  # None: all
FEW_LABELS_PER_CLASS, SHARES = (2, 5), (0.01, 0.1)
PROTOTYPES_PER_CLASS, WAYS, SHOTS, QUERIES = (1, 2, 5, 10), 5, (1, 5), 15
RETRIEVED = (1, 5, 10)


def weighted_knn(data: Labeled, k: tuple[int, ...] = KNN_K, temperature: float = KNN_TEMPERATURE) -> Scores:
    """kNN scores for each `k`. A `k` above the number of training images is left out, with a message."""
    k = tuple(count for count in k if enough_neighbors(len(data.train), count))
    if not k:
        return {}
    predictions = knn.weighted_knn(
        data.train, data.train_labels, data.test, num_classes=data.num_classes, k=k, temperature=temperature
    )
    return {
        f"knn/k{count}_t{temperature}/top1": score(predicted[None], data.test_labels)
        for count, predicted in predictions.items()
    }


def knn_sweep(data: Labeled) -> Scores:
    """kNN for all k and temperatures that InstDisc and DINO report."""
    found: Scores = {}
    for temperature in KNN_SWEEP_TEMPERATURES:
        found |= weighted_knn(data, KNN_SWEEP_K, temperature)
    return found


def linear_probes(data: Labeled, labels_per_class: tuple[int | None, ...] = LABELS_PER_CLASS) -> Scores:
    """Linear probes. The score with all labels also has "predictions", the predicted classes of the test images."""
    found: Scores = {}
    for per_class in labels_per_class:
        if enough(data.fewest, per_class, "linear probe"):
            label_set = "all" if per_class is None else f"{per_class}_per_class"
            found[f"linear/{label_set}/top1"] = _linear(data, per_class)
    return found


def low_shot(data: Labeled) -> Scores:
    """Linear probes with 2 and 5 labels per class, and with 1 and 10 percent of the labels.

    A percentage is taken of the smallest class. Every class gets that number of labels, at least two.
    """
    found = linear_probes(data, FEW_LABELS_PER_CLASS)
    for share in SHARES:
        per_class = max(round(share * data.fewest), 2)
        if enough(data.fewest, per_class, "linear probe"):
            found[f"linear/{round(100 * share)}_percent/top1"] = _linear(data, per_class) | {"per_class": per_class}
    return found


def nearest_prototypes(data: Labeled) -> Scores:
    """The nearest class mean: among all classes, with some labels of each; and in episodes of five classes, on test
    images alone."""
    found: Scores = {}
    for per_class in PROTOTYPES_PER_CLASS:
        if enough(data.fewest, per_class, "nearest class mean"):
            measured = prototypes.nearest_class_mean(*data.arrays, num_classes=data.num_classes, per_class=per_class)
            found[f"prototypes/{per_class}_per_class/top1"] = {
                **measured.images._asdict(),
                "class_mean": measured.classes.mean,
            }
    if data.num_classes >= WAYS:
        fewest = int(np.bincount(data.test_labels, minlength=data.num_classes).min())
        for shots in SHOTS:
            if fewest < shots + QUERIES:
                needed = f"{shots + QUERIES} test images of each class, and one has only {fewest}"
                print(f"episodes of {WAYS} classes with {shots} labels each left out: they need {needed}")
                continue
            measured = prototypes.few_shot(
                data.test, data.test_labels, num_classes=data.num_classes, ways=WAYS, shots=shots, queries=QUERIES
            )
            # An episode has equally many queries of each class, so the two means are the same.
            found[f"prototypes/{WAYS}_way_{shots}_shot/top1"] = measured._asdict() | {"class_mean": measured.mean}
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
    """A paper's linear probe, on the backbone's own features of images that are not augmented."""
    found = sgd_probe.sgd_probe(*data.arrays, num_classes=data.num_classes, recipe=RECIPES[recipe], groups=data.groups)
    return {f"probe/{recipe}/top1": of_steps(found, data.test_labels, "the backbone's own")}


def of_steps(found: sgd_probe.SGDProbe, labels: Int[np.ndarray, " images"], features: str) -> dict[str, Any]:
    settings = ("lr", "weight_decay", "peak_lr", "batch_size", "steps")
    made = {name: getattr(found, name) for name in settings}
    return score(found.predictions[None], labels) | {"features": features} | made


def _linear(data: Labeled, per_class: int | None) -> dict[str, Any]:
    probe = linear.linear_probe(
        *data.arrays,
        num_classes=data.num_classes,
        per_class=per_class,
        groups=data.groups,
    )
    found = score(probe.predictions, data.test_labels)
    found |= dict(accuracies=list(probe.accuracies), strengths=list(probe.strengths))
    return found | ({"predictions": probe.predictions[0]} if per_class is None else {})

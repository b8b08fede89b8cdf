"""Protocols by name, of frozen features: which numbers each gives, and with which settings."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ssl_jax.evaluation import block_probes, clustering, knn, linear, prototypes, retrieval, sgd_probe
from ssl_jax.evaluation.accuracy import class_mean, top1
from ssl_jax.evaluation.probe_recipes import RECIPES

# Score: "mean" and "std" over seeds, both in percent, and how it came about; by its full name, "linear/all/top1". Of an
# accuracy also "class_mean", where each class counts alike: see `accuracy.class_mean`.
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
    """Without a `k` that is more than there are training images, which it says."""
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
            measured = prototypes.nearest_class_mean(*data.arrays, num_classes=data.num_classes, per_class=per_class)
            found[f"prototypes/{per_class}_per_class/top1"] = {
                **measured.images._asdict(),
                "class_mean": measured.classes.mean,
            }
    if data.num_classes >= WAYS:
        for shots in SHOTS:
            measured = prototypes.few_shot(
                data.test, data.test_labels, num_classes=data.num_classes, ways=WAYS, shots=shots
            )
            # An episode asks as often for each class.
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
    found = sgd_probe.sgd_probe(*data.arrays, num_classes=data.num_classes, recipe=RECIPES[recipe])
    return {f"probe/{recipe}/top1": _of_steps(found, data.test_labels, "the backbone's own")}


def blocks(data: Labeled, name: str, dim: int, of: str) -> Scores:
    """A paper's linear probe of a ViT's last blocks. `data`, `dim`: see `block_probes.block_probe`. of: what is taken
    of each block, in words."""
    probe = block_probes.BLOCK_PROBES[name]
    found, tokens = block_probes.block_probe(*data.arrays, num_classes=data.num_classes, probe=probe, dim=dim)
    where = "" if probe.norm else ", before the final LayerNorm"
    return {f"probe/{name}/top1": _of_steps(found, data.test_labels, tokens.describe(of) + where)}


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


def enough_neighbors(images: int, k: int) -> bool:
    """Whether there are as many images as neighbors; says so where there are not."""
    if k <= images:
        return True
    print(f"kNN with k={k} left out: there are only {images} labelled images to look among")
    return False


def score(predictions: Int[np.ndarray, "draws images"], labels: Int[np.ndarray, " images"]) -> dict[str, Any]:
    """Accuracy in percent, its standard deviation over the draws (unbiased, 0 of one), and the mean over classes."""
    accuracies = top1(predictions, labels)
    return dict(
        mean=float(np.mean(accuracies)),
        std=float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else 0.0,
        class_mean=float(np.mean(class_mean(predictions, labels))),
    )


def _of_steps(found: sgd_probe.SGDProbe, labels: Int[np.ndarray, " images"], features: str) -> dict[str, Any]:
    settings = ("lr", "weight_decay", "peak_lr", "batch_size", "steps")
    made = {name: getattr(found, name) for name in settings}
    return score(found.predictions[None], labels) | {"features": features} | made


def _linear(data: Labeled, per_class: int | None) -> dict[str, Any]:
    probe = linear.linear_probe(
        *data.arrays,
        num_classes=data.num_classes,
        per_class=per_class,
    )
    found = score(probe.predictions, data.test_labels)
    found |= dict(accuracies=list(probe.accuracies), strengths=list(probe.strengths))
    return found | ({"predictions": probe.predictions[0]} if per_class is None else {})

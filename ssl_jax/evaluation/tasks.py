"""What a labelled image says, and what a fine-tuned network predicts: a class, several labels, or measurements.

A network's outputs are numbers [images, outputs]: logits of classes or of labels, or the measurements themselves.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import numpy as np
import scipy.special
from jaxtyping import Bool, Float, Int, Num, Shaped
from sklearn.metrics import log_loss

from ssl_jax.data.sources import Source
from ssl_jax.data.targets import MULTILABEL, REGRESSION, Targets
from ssl_jax.evaluation import linear, targets
from ssl_jax.evaluation.accuracy import class_mean, majority, top1
from ssl_jax.evaluation.labels import Draw, draw_labels
from ssl_jax.evaluation.several_outputs import SeveralOutputs
from ssl_jax.methods import Schedule
from ssl_jax.methods.supervised import Supervised

CLASSES = "classes"
LabelMethod = Supervised | SeveralOutputs
Truth = Num[np.ndarray, "images *outputs"]  # a class's index, -1 for none; or a number for each output, NaN for none
Outputs = Float[np.ndarray, "images outputs"]
Layer = tuple[Float[np.ndarray, "dim outputs"], Float[np.ndarray, " outputs"], Mapping[str, Any]]


@runtime_checkable
class Task(Protocol):
    """names: of the outputs."""

    @property
    def kind(self) -> str: ...

    @property
    def names(self) -> tuple[str, ...]: ...

    def truth(self, source: Source) -> Truth: ...

    def known(self, truth: Truth) -> Bool[np.ndarray, " images"]:
        """Which images have something to predict."""
        ...

    def draw(self, source: Source, per_class: int | None, seed: int) -> Draw:
        """The images to train on, and which of them are held out; see `labels.draw_labels`."""
        ...

    def method(self, backbone: nn.Module, schedule: Schedule, options: Mapping[str, Any]) -> LabelMethod:
        """With networks "backbone" and "classifier". options: those of `methods.Supervised`."""
        ...

    def table(self, truth: Truth) -> Float[np.ndarray, "images outputs"] | None:
        """What the method compares its outputs with, if it is not the label that comes with an image."""
        ...

    @property
    def units(self) -> tuple[Float[np.ndarray, " outputs"], Float[np.ndarray, " outputs"]]:
        """(scale, offset): the method's outputs * scale + offset have the units of the truth."""
        ...

    def error(self, outputs: Outputs, truth: Truth) -> float:
        """What is to be low on held-out images."""
        ...

    def scores(self, outputs: Outputs, truth: Truth) -> dict[str, Any]:
        """Of outputs in the units of the truth, on test images."""
        ...

    def linear_layer(
        self,
        features: Float[np.ndarray, "images dim"],
        truth: Truth,
        per_class: int | None,
        seed: int,
        groups: Shaped[np.ndarray, " images"] | None,
    ) -> Layer:
        """(kernel, bias, facts for the scores) of a layer on frozen features."""
        ...


def of_source(source: Source) -> Task:
    """What there is to predict. Raises: ValueError if the images have neither classes nor other targets."""
    if source.labels is not None and source.class_names:
        return Classes(source.class_names)
    if source.targets is not None:
        return SeveralTask.of(source.targets)
    raise ValueError(
        f"{source.name} has no labels, which fine-tuning needs: give classes (sub-folders, or a list's column label), "
        "several labels, or measurements"
    )


def answers(kind: str, outputs: Outputs) -> Outputs:
    """Probabilities of classes, which sum to 1, or of labels; measurements as they are."""
    if kind == CLASSES:
        return scipy.special.softmax(outputs, axis=1)
    return scipy.special.expit(outputs) if kind == MULTILABEL else outputs


@dataclasses.dataclass(frozen=True)
class Classes:
    """One class of each image."""

    names: tuple[str, ...]
    kind = CLASSES

    def truth(self, source: Source) -> Int[np.ndarray, " images"]:
        assert source.labels is not None
        return source.labels

    def known(self, truth: Truth) -> Bool[np.ndarray, " images"]:
        return np.asarray(truth >= 0)

    def draw(self, source: Source, per_class: int | None, seed: int) -> Draw:
        return draw_labels(self.truth(source), len(self.names), per_class, seed, source.groups)

    def method(self, backbone: nn.Module, schedule: Schedule, options: Mapping[str, Any]) -> LabelMethod:
        return Supervised(backbone, schedule, **options)

    def table(self, truth: Truth) -> None:
        return None

    @property
    def units(self) -> tuple[Float[np.ndarray, " outputs"], Float[np.ndarray, " outputs"]]:
        return np.ones(len(self.names), np.float32), np.zeros(len(self.names), np.float32)

    def error(self, outputs: Outputs, truth: Truth) -> float:
        rows = scipy.special.log_softmax(outputs.astype(np.float64), axis=1)
        return float(-np.mean(rows[np.arange(len(rows)), truth]))

    def scores(self, outputs: Outputs, truth: Truth) -> dict[str, Any]:
        predictions, largest = np.argmax(outputs, axis=1), majority(truth, len(self.names))
        return {
            "top1": float(top1(predictions, truth)),
            "class_mean": float(class_mean(predictions, truth)),
            "majority": largest.percent,
        }

    def linear_layer(
        self,
        features: Float[np.ndarray, "images dim"],
        truth: Truth,
        per_class: int | None,
        seed: int,
        groups: Shaped[np.ndarray, " images"] | None,
    ) -> Layer:
        kernel, bias, strength, labels = linear.linear_layer(
            features, truth, num_classes=len(self.names), per_class=per_class, seed=seed, groups=groups
        )
        return kernel, bias, {"penalty": strength, "labels": labels}


@dataclasses.dataclass(frozen=True)
class SeveralTask:
    """Several labels of each image, or measurements of it.

    mean, std: of each measurement over the training images; networks are trained on (value - mean) / std.
    """

    kind: str
    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, found: Targets) -> "SeveralTask":
        count = len(found.names)
        if found.kind == MULTILABEL:
            return cls(found.kind, found.names, (0.0,) * count, (1.0,) * count)
        columns = [column[~np.isnan(column)].astype(np.float64) for column in found.values.T]
        mean = tuple(float(column.mean()) if len(column) else 0.0 for column in columns)
        return cls(found.kind, found.names, mean, tuple(float(c.std()) or 1.0 if len(c) else 1.0 for c in columns))

    def truth(self, source: Source) -> Float[np.ndarray, "images outputs"]:
        assert source.targets is not None
        return source.targets.values

    def known(self, truth: Truth) -> Bool[np.ndarray, " images"]:
        return np.asarray(~np.isnan(truth).all(axis=1))

    def draw(self, source: Source, per_class: int | None, seed: int) -> Draw:
        if per_class is not None:
            raise ValueError(
                f"per_class={per_class} counts images of a class, and {source.name} has {_WHAT[self.kind]} in place of "
                "classes; leave it out"
            )
        labels = np.where(self.known(self.truth(source)), 0, -1)
        return draw_labels(labels, 1, None, seed, source.groups)

    def method(self, backbone: nn.Module, schedule: Schedule, options: Mapping[str, Any]) -> LabelMethod:
        if options:
            raise ValueError(f"{', '.join(options)} of the recipe's method are for classes; leave them out")
        return SeveralOutputs(backbone, schedule, outputs=len(self.names), binary=self.kind == MULTILABEL)

    def table(self, truth: Truth) -> Float[np.ndarray, "images outputs"]:
        return ((truth - np.array(self.mean)) / np.array(self.std)).astype(np.float32)

    @property
    def units(self) -> tuple[Float[np.ndarray, " outputs"], Float[np.ndarray, " outputs"]]:
        return np.array(self.std, np.float32), np.array(self.mean, np.float32)

    def error(self, outputs: Outputs, truth: Truth) -> float:
        known, wanted = ~np.isnan(truth), self.table(truth)
        if self.kind == MULTILABEL:
            return float(log_loss(wanted[known], answers(self.kind, outputs)[known].astype(np.float64), labels=[0, 1]))
        return float(np.mean(np.square(outputs - wanted, dtype=np.float64)[known]))

    def scores(self, outputs: Outputs, truth: Truth) -> dict[str, Any]:
        """Means over the outputs, in percent, and those of each output that differs over the test images."""
        known = ~np.isnan(truth)
        found = {
            name: targets.scores_of(self.kind, outputs[known[:, i], i], truth[known[:, i], i].astype(np.float64))
            for i, name in enumerate(self.names)
            if len(np.unique(truth[known[:, i], i])) > 1
        }
        means = {
            measure: 100 * float(np.mean([of[measure] for of in found.values()]))
            for measure in (("map", "auroc") if self.kind == MULTILABEL else ("r2",))
            if found
        }
        return means | {"outputs": found}

    def linear_layer(
        self,
        features: Float[np.ndarray, "images dim"],
        truth: Truth,
        per_class: int | None,
        seed: int,
        groups: Shaped[np.ndarray, " images"] | None,
    ) -> Layer:
        kernel, bias, strengths = targets.linear_layer(features, Targets(self.kind, self.names, truth), groups)
        return kernel, bias, {"penalty": strengths, "labels": int(np.sum(self.known(truth)))}


_WHAT = {MULTILABEL: "several labels an image", REGRESSION: "measurements"}

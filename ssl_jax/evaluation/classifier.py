"""Classifiers: a backbone and a linear layer on it, trained on labelled images, and their predictions.

tuned = finetune(backbone, train, test)
tuned.save("runs/a-tuned")
names, classes, probabilities = predict(load_classifier("runs/a-tuned"), source)
"""

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
from jaxtyping import Float, Num

from ssl_jax import paths
from ssl_jax.data import pipeline
from ssl_jax.data.sources import Source
from ssl_jax.data.targets import MULTILABEL, REGRESSION
from ssl_jax.data.uniform import Uniform
from ssl_jax.evaluation import saving, tasks
from ssl_jax.evaluation.embedding import named_rows
from ssl_jax.evaluation.evaluation import image_size_of
from ssl_jax.evaluation.features import BATCH, extract
from ssl_jax.evaluation.finetuning import fit
from ssl_jax.evaluation.finetuning_recipes import Recipe, small_recipe
from ssl_jax.evaluation.saving import as_json, described
from ssl_jax.evaluation.tasks import CLASSES, Outputs, Task, Truth
from ssl_jax.weights import Backbone
from ssl_jax.workdir import files

NAME = "classifier"
FILE, FACTS, SCORES = f"{NAME}.safetensors", f"{NAME}.json", "scores.json"


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A backbone and a linear layer on its features.

    kind: what it predicts: "classes", "multilabel" (several labels an image) or "regression" (measurements).
    names: of the classes, the labels, or what is measured.
    facts: how it was made: the images it was tuned on, the backbone that it began with, learning rate and steps.
    """

    backbone: Backbone
    kernel: Float[np.ndarray, "dim outputs"]
    bias: Float[np.ndarray, " outputs"]
    names: tuple[str, ...]
    kind: str = CLASSES
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])

    def predict(
        self, images: Num[np.ndarray, "batch height width channels"], normalized: bool = False, batch_size: int = 256
    ) -> Float[np.ndarray, "batch outputs"]:
        """The probability of each class (a row sums to 1) or of each label, or the measurements; float32.

        Arguments and errors are those of `Backbone.features`."""
        outputs = self.backbone.features(images, normalized, batch_size) @ self.kernel + self.bias
        return tasks.answers(self.kind, outputs).astype(np.float32)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes backbone.safetensors with backbone.json, classifier.safetensors and classifier.json, each whole or not
        at all. The layer has torch's names and layout: weight [classes, dim], bias.

        Raises: ValueError for a backbone whose image size is unknown.
        """
        said = {"kind": self.kind, "names": list(self.names), "facts": dict(self.facts)}
        saving.save(paths.path(directory), self.backbone, NAME, {"weight": self.kernel.T, "bias": self.bias}, said)


def load_classifier(directory: str | os.PathLike[str], model: nn.Module | None = None) -> Classifier:
    """Reads what `Classifier.save` wrote.

    model: the backbone's module, if it is one of your own.
    Raises: FileNotFoundError if there is no classifier; ValueError for damaged files, or files of another backbone.
    """

    def parse(backbone: Backbone, said: Any, parameters: Mapping[str, np.ndarray]) -> Any:
        kind, names, facts = str(said["kind"]), tuple(map(str, said["names"])), dict(said["facts"])
        return kind, names, facts, parameters["weight"].T, parameters["bias"]

    directory = paths.path(directory)
    backbone, (kind, names, facts, kernel, bias) = saving.load(directory, NAME, "finetune", model, parse)
    if kernel.shape != (backbone.dim, len(names)) or bias.shape != (len(names),):
        raise ValueError(
            f"{directory / FILE} takes {kernel.shape[0]} features and has {bias.size} outputs, but "
            f"the backbone gives {backbone.dim} and {FACTS} names {len(names)}; copy the "
            "whole directory again, or run ssl_jax finetune again"
        )
    return Classifier(backbone, kernel, bias, names, kind, facts)


@dataclasses.dataclass(frozen=True)
class Tuned:
    """A fine-tuned classifier and its scores.

    scores: "labels" (how many images it was trained on), "steps" and "learning_rate" (of a layer alone: "penalty"),
      "held_out_error" of each learning rate: mean cross entropy, or of measurements the mean squared error in units
      of their variance; None if it diverged. On test images, in percent: of classes "top1", "class_mean", and
      "majority", the largest class's share; of several labels "map", "auroc"; of measurements "r2"; and these of each,
      in "outputs".
    tested: outputs and truth of the test images; None without any.
    """

    classifier: Classifier
    scores: dict[str, Any]
    tested: tuple[Outputs, Truth] | None = None

    def save(self, directory: str | os.PathLike[str]) -> None:
        """As `Classifier.save`; also writes the scores to scores.json."""
        self.classifier.save(directory)
        files.write(paths.path(directory) / SCORES, as_json(self.scores))


def finetune(
    backbone: Backbone,
    train: Source,
    test: Source | None = None,
    *,
    recipe: Recipe | None = None,
    head_only: bool = False,
    per_class: int | None = None,
    seed: int = 0,
    image_size: tuple[int, int] | None = None,
    memory_bytes: int = 2**31,
) -> Tuned:
    """Trains a backbone, and a linear layer on it, on labelled images.

    What is predicted are the images' classes; of images without classes their several labels, or measurements. The
    learning rate is chosen on a fifth of the images, or of their groups; then the training uses all of them.

    Args:
      backbone: where training starts; its own variables stay as they are.
      train: with something to predict; images without it (label -1, or all NaN) are left out.
      test: only serves to measure; None for no scores.
      recipe: how to train; `small_recipe` if not given. With its lora_rank, few of the weights are trained.
      head_only: trains the layer alone, on frozen features, to its optimum: the linear probe of `evaluate`.
      per_class: labels of each class that are used, at least 2; None for all. Only for classes.
      seed: of the draw of labels, the layer's initial weights, the order and the augmentation.
      image_size: (height, width) in pixels that images are read at; the backbone's own if not given.
      memory_bytes: images are kept decoded in memory if they take no more than this.
    Raises: ValueError for images with nothing to predict, a class with fewer than per_class, an unknown image size or
      normalization, and a recipe beside head_only.
    """
    normalization = backbone.normalization
    size = image_size_of(backbone, image_size)
    if head_only and recipe is not None:
        raise ValueError("head_only trains no backbone and needs no recipe; give one of the two")
    task = tasks.of_source(train)
    if test is not None and (test.class_names != train.class_names or _others(train, test)):
        raise ValueError(
            f"{train.name} and {test.name} have different {_WHAT[task.kind]}; give test images of the same "
            f"{_WHAT[task.kind]}"
        )
    made = _with_layer if head_only else _with_recipe
    read_test = None if test is None else Uniform(test, normalization)
    options = _Options(task, recipe or small_recipe(size), size, per_class, seed, memory_bytes)
    tuned, (kernel, bias), scores, tested = made(backbone, Uniform(train, normalization), read_test, options)
    if tested is not None:
        scores |= {"test_images": len(tested[1]), **task.scores(*tested)}
    facts = {
        "train": described(train),
        "test": None if test is None else described(test),
        "trained": _trained(options.recipe, head_only),
        "per_class": per_class,
        "seed": seed,
        "began_with": dict(backbone.facts),
        **{name: found for name, found in scores.items() if name in ("learning_rate", "penalty", "steps", "labels")},
    }
    return Tuned(Classifier(tuned, kernel, bias, task.names, task.kind, facts), scores, tested)


def _trained(recipe: Recipe, head_only: bool) -> str:
    if head_only:
        return "the last layer, on frozen features"
    what = "all weights"
    if recipe.lora_rank:
        what = f"low-rank terms of rank {recipe.lora_rank}, times {recipe.lora_alpha:g} / {recipe.lora_rank}"
    return f"{what}; averaged with decay {recipe.ema_decay:g}" if recipe.ema_decay else what


class _Options(NamedTuple):
    task: Task
    recipe: Recipe
    size: tuple[int, int]
    per_class: int | None
    seed: int
    memory_bytes: int


# (the backbone afterwards, the layer's kernel and bias, scores of the training, outputs and truth of the test images)
_Made = tuple[Backbone, tuple[np.ndarray, np.ndarray], dict[str, Any], tuple[Outputs, Truth] | None]


def _with_recipe(backbone: Backbone, train: Source, test: Source | None, options: _Options) -> _Made:
    recipe = options.recipe
    fitted = fit(
        backbone,
        train,
        recipe=recipe,
        image_size=options.size,
        per_class=options.per_class,
        seed=options.seed,
        memory_bytes=options.memory_bytes,
    )
    model = backbone.facts.get("model")
    tuned = dataclasses.replace(
        backbone,
        model=fitted.model,
        variables=fitted.variables,
        image_size=options.size,
        facts=backbone.facts if model is None else {**backbone.facts, "model": {**model, **recipe.model}},
    )
    scores: dict[str, Any] = {
        "learning_rate": fitted.learning_rate,
        "steps": recipe.steps,
        "labels": fitted.labels,
        "held_out_error": {str(lr): error if np.isfinite(error) else None for lr, error in fitted.tried.items()},
    }
    return tuned, (fitted.kernel, fitted.bias), scores, None if test is None else fitted.outputs(test)


def _with_layer(backbone: Backbone, train: Source, test: Source | None, options: _Options) -> _Made:
    def features(source: Source) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(features, truth, indices) of the images that have something to predict."""
        batches = pipeline.eval_batches(source, image_size=options.size, batch_size=BATCH)
        found = extract(functools.partial(backbone.features, batch_size=BATCH), batches, BATCH)
        truth = options.task.truth(source)[found.index]
        known = options.task.known(truth)
        return found.features[known], truth[known], found.index[known]

    x, truth, index = features(train)
    groups = None if train.groups is None else train.groups[index]
    kernel, bias, scores = options.task.linear_layer(x, truth, options.per_class, options.seed, groups)
    tested = None
    if test is not None:
        x, truth, _ = features(test)
        tested = (x @ kernel + bias, truth)
    return dataclasses.replace(backbone, image_size=options.size), (kernel, bias), dict(scores), tested


def _others(train: Source, test: Source) -> bool:
    """Whether the test images have other things to predict than classes."""
    if train.class_names or train.targets is None:
        return False
    return test.targets is None or not train.targets.is_like(test.targets)


_WHAT = {CLASSES: "classes", MULTILABEL: "labels", REGRESSION: "measurements"}


class Predictions(NamedTuple):
    """Of the images that could be decoded.

    names: as `embed` gives them.
    classes: the most probable class; of several labels those of a probability above a half, joined by ";"; of
      measurements "".
    values: probabilities, or measurements, as `Classifier.predict` gives them.
    """

    names: list[str]
    classes: list[str]
    values: Float[np.ndarray, "images outputs"]


def predict(classifier: Classifier, source: Source, *, windows: str = "mean") -> Predictions:
    """Predictions for each image that can be decoded, in order; others are left out, with a warning.

    windows: of images that are windows of larger ones (see `ssl_jax.data.windows`), "mean": the mean of the predictions
      over the windows of each larger image; "all": each window.
    Raises: ImagesError if none can be decoded; ValueError for images with another number of channels.
    """
    size = image_size_of(classifier.backbone, None)
    source = Uniform(source, classifier.backbone.normalization)
    names, found = named_rows(functools.partial(classifier.predict, batch_size=BATCH), source, size, windows)
    return Predictions(names, [_called(classifier, row) for row in found.features], found.features)


def _called(classifier: Classifier, row: Float[np.ndarray, " outputs"]) -> str:
    if classifier.kind == CLASSES:
        return classifier.names[int(np.argmax(row))]
    if classifier.kind == MULTILABEL:
        return ";".join(name for name, share in zip(classifier.names, row, strict=True) if share > 0.5)
    return ""

"""Classifiers: a backbone fine-tuned on labelled images with a linear layer on it, and their predictions.

tuned = finetune(backbone, train, test)
tuned.save("runs/a-tuned")
names, classes, probabilities = predict(load_classifier("runs/a-tuned"), source)
"""

import csv
import dataclasses
import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import Float, Num

from ssl_jax.data.sources import Source
from ssl_jax.data.uniform import Uniform
from ssl_jax.evaluation.accuracy import class_mean, top1
from ssl_jax.evaluation.embedding import named_rows
from ssl_jax.evaluation.evaluation import image_size_of
from ssl_jax.evaluation.features import BATCH
from ssl_jax.evaluation.finetuning import fit
from ssl_jax.evaluation.finetuning_recipes import Recipe, small_recipe
from ssl_jax.weights import Backbone, load_backbone, save_backbone
from ssl_jax.workdir import files

FILE, FACTS, SCORES = "classifier.safetensors", "classifier.json", "scores.json"


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A backbone and a linear layer on its features: images in, probabilities of classes out.

    facts: how it was made: the images it was tuned on, the backbone that it began with, learning rate and steps.
    """

    backbone: Backbone
    kernel: Float[np.ndarray, "dim classes"]
    bias: Float[np.ndarray, " classes"]
    class_names: tuple[str, ...]
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])

    def probabilities(
        self, images: Num[np.ndarray, "batch height width channels"], normalized: bool = False, batch_size: int = 256
    ) -> Float[np.ndarray, "batch classes"]:
        """The probability of each class, float32; a row sums to 1. Arguments and errors are those of
        `Backbone.features`."""
        logits = self.backbone.features(images, normalized, batch_size) @ self.kernel + self.bias
        return np.asarray(jax.nn.softmax(logits))

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes backbone.safetensors with backbone.json, classifier.safetensors and classifier.json, each whole or not
        at all. The layer has torch's names and layout: weight [classes, dim], bias.

        Raises: ValueError for a backbone whose image size is unknown.
        """
        directory, backbone = Path(directory), self.backbone
        facts = {
            **backbone.facts,
            "model": backbone.facts.get("model", {"name": type(backbone.model).__name__}),
            "image_size": list(image_size_of(backbone, None)),
            "channels": len(backbone.mean),
            **dataclasses.asdict(backbone.normalization),
        }
        directory.mkdir(parents=True, exist_ok=True)
        save_backbone(directory, backbone.variables, facts)
        layer = {"weight": np.ascontiguousarray(self.kernel.T, np.float32), "bias": np.asarray(self.bias, np.float32)}
        with files.replacing(directory / FILE) as file:
            file.write(safetensors.numpy.save(layer))
        files.write(directory / FACTS, _json({"classes": list(self.class_names), "facts": dict(self.facts)}))


def load_classifier(directory: str | os.PathLike[str], model: nn.Module | None = None) -> Classifier:
    """Reads what `Classifier.save` wrote.

    model: the backbone's module, if it is one of your own.
    Raises: FileNotFoundError if there is no classifier; ValueError for damaged files, or files of another backbone.
    """
    directory = Path(directory)
    for name in (FILE, FACTS):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"no file {directory / name}; ssl_jax finetune --out {directory} writes it")
    backbone = load_backbone(directory, model)
    try:
        text = json.loads((directory / FACTS).read_text())
        names, facts = tuple(map(str, text["classes"])), dict(text["facts"])
        layer = safetensors.numpy.load((directory / FILE).read_bytes())
        kernel, bias = layer["weight"].T, layer["bias"]
    except (ValueError, KeyError, TypeError, RecursionError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"the classifier in {directory} is damaged ({error!r}); copy it again, or run ssl_jax finetune again"
        ) from error
    if kernel.shape != (backbone.dim, len(names)) or bias.shape != (len(names),):
        raise ValueError(
            f"{directory / FILE} takes {kernel.shape[0]} features and has {bias.size} classes, but "
            f"the backbone gives {backbone.dim} and {FACTS} names {len(names)} classes; copy the "
            "whole directory again, or run ssl_jax finetune again"
        )
    return Classifier(backbone, kernel, bias, names, facts)


@dataclasses.dataclass(frozen=True)
class Tuned:
    """A fine-tuned classifier and its scores.

    scores: "learning_rate", "steps", "labels" (how many), and on test images "top1" and "class_mean" in percent.
    """

    classifier: Classifier
    scores: dict[str, Any]

    def save(self, directory: str | os.PathLike[str]) -> None:
        """As `Classifier.save`; also writes the scores to scores.json."""
        self.classifier.save(directory)
        files.write(Path(directory) / SCORES, _json(self.scores))


def finetune(
    backbone: Backbone,
    train: Source,
    test: Source | None = None,
    *,
    recipe: Recipe | None = None,
    per_class: int | None = None,
    seed: int = 0,
    image_size: tuple[int, int] | None = None,
    memory_bytes: int = 2**31,
) -> Tuned:
    """Trains the whole backbone, and a classifier on it, on labelled images.

    The learning rate is chosen on a fifth of the labels; then the training uses all of them.

    Args:
      backbone: where training starts; its own variables stay as they are.
      train: with labels; images without one (-1) are left out.
      test: only serves to count the hits; None for no scores.
      recipe: how to train; `small_recipe` if not given.
      per_class: labels of each class that are used, at least 2; None for all.
      seed: of the draw of labels, the classifier's initial weights, the order and the augmentation.
      image_size: (height, width) in pixels that images are read at; the backbone's own if not given.
      memory_bytes: images are kept decoded in memory if they take no more than this.
    Raises: ValueError for images without labels, a class with fewer than per_class, an unknown image size or
      normalization.
    """
    normalization = backbone.normalization
    size = image_size_of(backbone, image_size)
    recipe = recipe or small_recipe(size)
    if test is not None and test.class_names != train.class_names:
        raise ValueError(f"{train.name} and {test.name} have different classes; give test images of the same classes")
    fitted = fit(
        backbone,
        Uniform(train, normalization),
        recipe=recipe,
        image_size=size,
        per_class=per_class,
        seed=seed,
        memory_bytes=memory_bytes,
    )
    model = backbone.facts.get("model")
    tuned = dataclasses.replace(
        backbone,
        model=fitted.model,
        variables=fitted.variables,
        image_size=size,
        facts=backbone.facts if model is None else {**backbone.facts, "model": {**model, **recipe.model}},
    )
    scores: dict[str, Any] = {
        "learning_rate": fitted.learning_rate,
        "steps": recipe.steps,
        "labels": fitted.labels,
        "held_out_cross_entropy": {str(rate): loss for rate, loss in fitted.tried.items()},
    }
    if test is not None:
        logits, labels = fitted.logits(Uniform(test, normalization))
        predictions = np.argmax(logits, axis=1)
        scores |= {"test_images": len(labels), "top1": float(top1(predictions, labels))}
        scores |= {"class_mean": float(class_mean(predictions, labels))}
    facts = {
        "train": _described(train),
        "test": None if test is None else _described(test),
        "per_class": per_class,
        "seed": seed,
        "began_with": dict(backbone.facts),
        **{name: scores[name] for name in ("learning_rate", "steps", "labels")},
    }
    return Tuned(Classifier(tuned, fitted.kernel, fitted.bias, train.class_names, facts), scores)


class Predictions(NamedTuple):
    """names: of the images that could be decoded, as `embed` gives them. classes: name of the most probable class."""

    names: list[str]
    classes: list[str]
    probabilities: Float[np.ndarray, "images classes"]


def predict(classifier: Classifier, source: Source, *, windows: str = "mean") -> Predictions:
    """Predictions for each image that can be decoded, in order; others are left out, with a warning.

    windows: of images that are windows of larger ones (see `ssl_jax.data.windows`), "mean": the mean of the
      probabilities over the windows of each larger image; "all": each window.
    Raises: ImagesError if none can be decoded; ValueError for images with another number of channels.
    """
    size = image_size_of(classifier.backbone, None)
    source = Uniform(source, classifier.backbone.normalization)
    probabilities = functools.partial(classifier.probabilities, batch_size=BATCH)
    names, found = named_rows(probabilities, source, size, windows)
    classes = [classifier.class_names[int(k)] for k in np.argmax(found.features, axis=1)]
    return Predictions(names, classes, found.features)


def save_predictions(path: Path, predictions: Predictions, class_names: tuple[str, ...]) -> None:
    """Writes a CSV: name, class, probability (of that class), and a column of probabilities named after each class."""
    with files.replacing(path) as file:
        lines = _Lines(file)
        table = csv.writer(lines)
        table.writerow(["name", "class", "probability", *class_names])
        for name, chosen, row in zip(*predictions, strict=True):
            table.writerow([name, chosen, f"{row.max():.6g}", *(f"{value:.6g}" for value in row)])


class _Lines:
    """Writes text to a binary file. File names may hold characters that UTF-8 has not; those are escaped."""

    def __init__(self, file: Any):
        self._file = file

    def write(self, text: str) -> int:
        return self._file.write(text.encode("utf-8", "backslashreplace"))


def _described(source: Source) -> dict[str, Any]:
    return {
        "name": source.name,
        "kind": type(source).__name__,
        "digest": source.digest(),
        "images": len(source),
    }


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"

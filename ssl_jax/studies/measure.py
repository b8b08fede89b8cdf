"""Measures every subject of a study: linear probes and fine-tuning, for each seed and number of labels."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from ssl_jax import config as configs
from ssl_jax import keys
from ssl_jax.data.augment import Augmentation
from ssl_jax.data.normalization import Normalization
from ssl_jax.data.sources import Source
from ssl_jax.data.uniform import Uniform
from ssl_jax.evaluation import baselines, linear
from ssl_jax.evaluation.features import BATCH, Batches, extract, read_batches
from ssl_jax.evaluation.finetuning import measure_finetuning
from ssl_jax.evaluation.finetuning_recipes import Recipe
from ssl_jax.evaluation.subject import Labeled, as_labeled
from ssl_jax.studies.cells import Cells
from ssl_jax.studies.subjects import Data, Pixels, Subject
from ssl_jax.training import reading
from ssl_jax.weights import Backbone

# Keys whose value is a tuple of integers.
LISTS = (("linear", "labels_per_class"), ("finetune", "labels_per_class"), ("finetune", "measured"))


class Protocol(NamedTuple):
    name: str  # "linear" or "finetune"
    per_class: int  # labels

    def __str__(self) -> str:
        named = {"linear": "linear", "finetune": "fine-tuned"}[self.name]
        return f"{named}, {self.per_class} labels per class"


# Subject -> protocol -> accuracy in percent, [seeds, measured steps], averaged over a seed's label draws.
Table = dict[str, dict[Protocol, Float[np.ndarray, "seeds measured"]]]


def protocols(config: ConfigDict) -> list[Protocol]:
    return [Protocol(name, n) for name in ("linear", "finetune") for n in config[name].labels_per_class]


def measured_steps(config: ConfigDict) -> tuple[int, ...]:
    """The steps of fine-tuning at which accuracy is measured."""
    return tuple(config.finetune.measured) or (config.finetune.steps,)


def draws(config: ConfigDict, seed: int) -> tuple[int, ...]:
    """A seed's draws of labels: the same for all subjects, and different from those of all other seeds."""
    return tuple(range(seed * config.draws, (seed + 1) * config.draws))


def check(config: ConfigDict, data: Data) -> None:
    """Raises: ConfigError for what cannot be measured, before any work."""
    for section, key in LISTS:
        numbers = tuple(config[section][key])
        if not keys.is_of(numbers, tuple[int, ...]):
            raise configs.ConfigError(f"config.{section}.{key} must be a tuple of integers, got {numbers}")
    seeds, steps, found = tuple(config.seeds), config.finetune.steps, protocols(config)
    conditions = [
        (
            seeds and keys.is_of(seeds, tuple[int, ...]) and len(set(seeds)) == len(seeds) and keys.SEED.allows(seeds),
            f"config.seeds must be one or more different integers {keys.SEED}, got {seeds}",
        ),
        (config.draws >= 1, f"config.draws must be at least 1, got {config.draws}"),
        (found, "config.linear.labels_per_class and config.finetune.labels_per_class are both empty; fill one of them"),
        (
            all(0 <= step <= steps for step in config.finetune.measured),
            f"config.finetune.measured must be in 0..{steps} (its steps), got {tuple(config.finetune.measured)}",
        ),
        (
            list(config.finetune.measured) == sorted(set(config.finetune.measured)),
            f"config.finetune.measured must ascend, got {tuple(config.finetune.measured)}",
        ),
    ]
    for condition, message in conditions:
        if not condition:
            raise configs.ConfigError(message)
    configs.call(recipe, {}, "config.finetune", config, data.config)
    train, _ = data.pair
    labels = train.labels
    assert labels is not None  # as `Data.pair` checks
    fewest = int(np.bincount(labels[labels >= 0], minlength=len(train.class_names)).min())
    for protocol in found:
        if not 2 <= protocol.per_class <= fewest:
            raise configs.ConfigError(
                f"config.{protocol.name}.labels_per_class has {protocol.per_class}; it must be at "
                f"least 2, as one label chooses hyper-parameters, and at most {fewest}, the images of "
                f"the smallest class of {train.name}"
            )


def recipe(config: ConfigDict, pretraining: ConfigDict) -> Recipe:
    options = config.finetune
    return Recipe(
        Augmentation(size=tuple(pretraining.data.image_size), crop_area=tuple(options.crop_area)),
        steps=options.steps,
        batch_size=options.batch_size,
        learning_rates=tuple(options.learning_rates),
    )


def measure(config: ConfigDict, subjects: Sequence[Subject], data: Data, workdir: Path) -> Table:
    """Measures all cells, but reads those that study.json has. Raises: Stopped."""
    cells = Cells(workdir / "study.json")
    bench = _Bench(config, data, workdir / "runs")
    total = len(config.seeds) * sum(1 for s in subjects for p in protocols(config) if applies(p, s))
    measured: dict[str, dict[Protocol, list[np.ndarray]]] = {subject.name: {} for subject in subjects}
    done = 0
    for seed in config.seeds:
        for subject in subjects:
            opened = _Opened(bench, subject, seed)
            for protocol in protocols(config):
                if not applies(protocol, subject):
                    continue
                key = f"{subject.name}/seed {seed}/{protocol}"
                found = cells.measure(key, functools.partial(opened.accuracies, protocol))
                done += 1
                row = np.mean(found["accuracies"], axis=0)
                print(f"cell {done} of {total}: {key}: {row[-1]:.1f}%", flush=True)
                measured[subject.name].setdefault(protocol, []).append(row)
    return {name: {p: np.stack(rows) for p, rows in found.items()} for name, found in measured.items()}


def applies(protocol: Protocol, subject: Subject) -> bool:
    """Whether the protocol can measure the subject. Pixels have nothing to fine-tune."""
    return not (protocol.name == "finetune" and isinstance(subject, Pixels))


class _Bench:
    """The images that are measured on, decoded when the first cell needs them."""

    def __init__(self, config: ConfigDict, data: Data, runs: Path):
        self.config, self.data, self.runs = config, data, runs

    @functools.cached_property
    def sources(self) -> tuple[Source, Source]:
        train, test = (Uniform(source, self.normalization) for source in self.data.pair)
        return train, test

    @functools.cached_property
    def batches(self) -> list[Batches]:
        data = self.data.config.data
        options = dict(
            image_size=data.image_size, pixel_bytes=self.normalization.pixel_bytes, memory_bytes=data.memory_bytes
        )
        return [read_batches(source, **options) for source in self.sources]

    @functools.cached_property
    def normalization(self) -> Normalization:
        return reading.normalization(configs.parse(self.data.config))


class _Opened:
    """A subject at one seed. It is pre-trained, and its features are computed, only when a missing cell needs that."""

    def __init__(self, bench: _Bench, subject: Subject, seed: int):
        self.bench, self.subject, self.seed = bench, subject, seed

    @functools.cached_property
    def backbones(self) -> dict[str, Backbone]:
        assert not isinstance(self.subject, Pixels)  # which nothing asks for a backbone
        return self.subject.backbones(self.seed, self.bench.runs, self.bench.batches[0])

    @functools.cached_property
    def features(self) -> dict[str, Labeled]:
        """Variant -> the features of the training and of the test images that have a label."""
        if isinstance(self.subject, Pixels):
            functions = {"pixels": functools.partial(baselines.pixels, self.bench.normalization)}
        else:
            functions = {name: backbone.features for name, backbone in self.backbones.items()}
        made: dict[str, Labeled] = {}
        for name, function in functions.items():
            train, test = (extract(function, batches(), BATCH) for batches in self.bench.batches)
            made[name] = as_labeled(train, test, self.bench.sources[0])
        return made

    def accuracies(self, protocol: Protocol) -> dict[str, Any]:
        """The best variant's accuracies, [draws, measured steps], with its name."""
        per_variant = (self._linear if protocol.name == "linear" else self._finetune)(protocol.per_class)
        best = max(per_variant, key=lambda name: np.mean(per_variant[name]["accuracies"], axis=0)[-1])
        return {"variant": best, **per_variant[best]}

    def _linear(self, per_class: int) -> dict[str, dict[str, Any]]:
        seeds, found = draws(self.bench.config, self.seed), {}
        for name, data in self.features.items():
            probe = linear.linear_probe(
                *data.arrays, num_classes=data.num_classes, per_class=per_class, seeds=seeds, groups=data.groups
            )
            found[name] = {"accuracies": [[accuracy] for accuracy in probe.accuracies]}
        return found

    def _finetune(self, per_class: int) -> dict[str, dict[str, Any]]:
        config, pretraining = self.bench.config, self.bench.data.config
        found = {}
        for name, backbone in self.backbones.items():
            if name.startswith("calibrated"):
                continue  # training forgets the statistics that it began with
            tuned = measure_finetuning(
                backbone,
                *self.bench.sources,
                recipe=recipe(config, pretraining),
                image_size=tuple(pretraining.data.image_size),
                per_class=per_class,
                seeds=draws(config, self.seed),
                measured=measured_steps(config),
            )
            found[name] = {"accuracies": tuned.accuracies.tolist(), "learning_rate": tuned.learning_rate}
        return found

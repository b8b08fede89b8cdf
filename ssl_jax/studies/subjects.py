"""What a study compares: pre-trained backbones, untrained ones, raw pixels; and the images that it does so on."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ssl_jax import baselines, build, load_backbone, run, weights
from ssl_jax import config as configs
from ssl_jax.data import sources
from ssl_jax.evaluation.features import Batches
from ssl_jax.train import train
from ssl_jax.weights import Backbone


class Stopped(Exception):
    """SIGTERM came while pre-training, whose state is saved."""


@dataclasses.dataclass(frozen=True)
class Data:
    """Labelled images that subjects are trained and measured on.

    config: of a pre-training; its section `data` says which images. least_images: classes with fewer in the training
    part count as unlabelled; 0 for none.
    """

    config: ConfigDict
    least_images: int = 0

    @functools.cached_property
    def pair(self) -> tuple[sources.Source, sources.Source]:
        """(training, test), read once. Raises: ConfigError where they have no labels."""
        train, test = build.source_pair(self.config)
        if not train.class_names:
            raise configs.ConfigError(f"{train.name} has no labels, which a study measures against")
        counts = np.bincount(train.labels[train.labels >= 0], minlength=len(train.class_names))
        kept = np.flatnonzero(counts >= self.least_images)
        if len(kept) < 2:
            raise configs.ConfigError(f"{train.name} has {len(kept)} classes of {self.least_images} images; lower that")
        if len(kept) == len(counts):
            return train, test
        return ClassSubset(train, kept), ClassSubset(test, kept)

    def seeded(self, seed: int) -> ConfigDict:
        """The config with this seed."""
        config = self.config.copy_and_resolve_references()
        config.seed = seed
        return config


class ClassSubset(sources.Source):
    """Another source whose images of other classes than `classes` (ascending) have no label."""

    def __init__(self, source: sources.Source, classes: Sequence[int]):
        self._source = source
        self.name = source.name
        self.class_names = tuple(source.class_names[k] for k in classes)
        self._new = np.full(len(source.class_names) + 1, -1, np.int32)  # the last entry: of the label -1
        self._new[np.asarray(classes)] = np.arange(len(classes))

    @property
    def labels(self):
        labels = self._source.labels
        return None if labels is None else self._new[labels]

    def __len__(self):
        return len(self._source)

    def read(self, index):
        image, label = self._source.read(index)
        return image, int(self._new[label])

    def digest(self):
        return self._source.digest()


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A pre-training, on the training part of its data alone, and what it begins with, if not at random."""

    name: str
    data: Data
    begin: "Pretrained | None" = None

    def backbones(self, seed: int, runs: Path, measured_on: Any) -> dict[str, Backbone]:
        """Pre-trains what is not there yet. Raises: Stopped."""
        workdir = runs / f"{self.name}-{seed}"
        if not (workdir / weights.FILE).exists():
            begin = self.begin and self.begin.backbones(seed, runs, measured_on)["pretrained"]
            config, (source, _) = self.data.seeded(seed), self.data.pair
            build.check_batch(config, source)
            print(f"\npre-training {self.name}, seed {seed}", flush=True)
            if not train(config, workdir, source=source, begin=begin):
                raise Stopped
        return {"pretrained": load_backbone(workdir)}


@dataclasses.dataclass(frozen=True)
class Untrained:
    """A network as it is initialized: the best, in each measurement, of the variants of baselines.random_backbones."""

    name: str
    data: Data

    def backbones(self, seed: int, runs: Path, measured_on: Batches) -> dict[str, Backbone]:
        return baselines.random_backbones(self.data.seeded(seed), measured_on)


@dataclasses.dataclass(frozen=True)
class Pixels:
    """No network: its features are the images."""

    name: str = "pixels"


Subject = Pretrained | Untrained | Pixels


def resolve(file: str, overrides: Sequence[str]) -> ConfigDict:
    """The pre-training config "NAME:SCALE" with each "KEY=VALUE". Raises: ConfigError as ssl_jax train does."""
    arguments = [f"--config={file}", *(f"--config.{override}" for override in overrides)]
    config = configs.read_flags(arguments, program=f"a study's pre-training {file}", defaults=build.defaults).config
    configs.check(config)
    return config


def claim(workdir: Path, config: ConfigDict, subjects: Sequence[Subject]) -> None:
    """Makes `workdir` this study's, its pre-trainings' configs as of now included. Raises: ConfigError."""
    resolved = {s.name: s.data.config for s in subjects if isinstance(s, Pretrained)}
    run.claim(workdir, ConfigDict({"study": configs.plain(config), "pretraining": configs.plain(resolved)}))

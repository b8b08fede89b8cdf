"""What a study compares: pre-trained backbones, untrained ones and raw pixels; and the images it compares them on."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ssl_jax import config as configs
from ssl_jax import weights
from ssl_jax.config.overrides import override
from ssl_jax.data import sources
from ssl_jax.evaluation import baselines
from ssl_jax.evaluation.features import Batches
from ssl_jax.pretraining import pretrain
from ssl_jax.training import build, reading
from ssl_jax.training.config_keys import of_sections
from ssl_jax.training.measuring import measured
from ssl_jax.weights import Backbone
from ssl_jax.workdir import config_file


@dataclasses.dataclass(frozen=True)
class Data:
    """Labelled images that subjects are trained and measured on.

    config: of a pre-training; its section `data` says which images. least_images: classes with fewer images in the
    training split count as unlabelled; 0: no class does.
    """

    config: ConfigDict
    least_images: int = 0

    @functools.cached_property
    def pair(self) -> tuple[sources.Source, sources.Source]:
        """(training, test), read once. Raises: ConfigError where they have no labels."""
        train, test = reading.source_pair(configs.parse(self.config))
        labels = train.labels
        if not train.class_names or labels is None:
            raise configs.ConfigError(f"{train.name} has no labels, but a study needs them to measure accuracies")
        counts = np.bincount(labels[labels >= 0], minlength=len(train.class_names))
        kept = np.flatnonzero(counts >= self.least_images).tolist()
        if len(kept) < 2:
            raise configs.ConfigError(
                f"{train.name} has {len(kept)} classes with at least {self.least_images} "
                "images; a study needs two, so ask for fewer images"
            )
        if len(kept) == len(counts):
            return train, test
        return ClassSubset(train, kept), ClassSubset(test, kept)

    def seeded(self, seed: int) -> ConfigDict:
        """The config with this seed."""
        config = self.config.copy_and_resolve_references()
        config.seed = seed
        return config


class ClassSubset(sources.SameImages):
    """A source where only images of `classes` (ascending) have a label; images of all other classes have none."""

    def __init__(self, source: sources.Source, classes: Sequence[int]):
        super().__init__(source)
        self.class_names = tuple(source.class_names[k] for k in classes)
        self._new = np.full(len(source.class_names) + 1, -1, np.int32)  # the last entry is for the label -1
        self._new[np.asarray(classes)] = np.arange(len(classes))

    @property
    def labels(self):
        labels = self._source.labels
        return None if labels is None else self._new[labels]

    def read(self, index):
        image, label = self._source.read(index)
        return image, int(self._new[label])


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A pre-training on the training split of its data only. begin: the pre-training that it starts from; None: it
    starts at random."""

    name: str
    data: Data
    begin: "Pretrained | None" = None

    def backbones(self, seed: int, runs: Path, measured_on: Any) -> dict[str, Backbone]:
        """Pre-trains what is not there yet. Raises: Stopped."""
        workdir = runs / f"{self.name}-{seed}"
        if not (workdir / weights.FILE).exists():
            begin = self.begin and self.begin.backbones(seed, runs, measured_on)["pretrained"]
            config, (source, _) = self.data.seeded(seed), self.data.pair
            reading.check_batch(configs.parse(config), source)
            print(f"\npre-training {self.name}, seed {seed}", flush=True)
            pretrain(config, source, workdir=workdir, begin=begin)
        return {"pretrained": weights.load_backbone(workdir)}


@dataclasses.dataclass(frozen=True)
class Weights:
    """Given weights, as they are."""

    name: str
    backbone: Backbone

    def backbones(self, seed: int, runs: Path, measured_on: Any) -> dict[str, Backbone]:
        return {"pretrained": self.backbone}


@dataclasses.dataclass(frozen=True)
class Untrained:
    """An untrained network. Each measurement takes the best of the variants of baselines.random_backbones."""

    name: str
    data: Data

    def backbones(self, seed: int, runs: Path, measured_on: Batches) -> dict[str, Backbone]:
        config = configs.parse(self.data.config)
        data, network = config.data, build.backbone(config)
        values = dataclasses.asdict(reading.normalization(config))
        untrained = Backbone(network, {}, **values)
        return baselines.random_backbones(untrained, measured_on, image_size=data.image_size, seed=seed)


@dataclasses.dataclass(frozen=True)
class Pixels:
    """No network: its features are the images."""

    name: str = "pixels"


Subject = Pretrained | Weights | Untrained | Pixels


def resolve(file: str, overrides: Sequence[str]) -> ConfigDict:
    """The pre-training config "NAME:SCALE" with overrides "KEY=VALUE". Raises: ConfigError as ssl_jax train does."""
    config = configs.get_config(file)
    override(config, overrides, of_sections)
    configs.parse(config)
    return measured(config)


def claim(workdir: Path, config: ConfigDict, subjects: Sequence[Subject]) -> None:
    """Claims `workdir` for this study and the present configs of its pre-trainings. Raises: ConfigError."""
    resolved = {s.name: s.data.config for s in subjects if isinstance(s, Pretrained)}
    config_file.claim(workdir, ConfigDict({"study": configs.plain(config), "pretraining": configs.plain(resolved)}))

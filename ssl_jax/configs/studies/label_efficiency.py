"""Accuracy over labels per class. Scales: tiny (about ten minutes on two CPU cores), smoke (seconds, for tests)."""

from ml_collections import ConfigDict

from ssl_jax import recipes
from ssl_jax.studies.base import base_config, smoke_pretraining, tiny_pretraining


def tiny() -> ConfigDict:
    config = base_config("label_efficiency")
    config.seeds = (0, 1, 2, 3, 4)
    config.update(tiny_pretraining())
    config.linear.labels_per_class = (2, 5, 10, 20, 50, 100)
    config.finetune.update(labels_per_class=(10, 100))
    return config


def smoke() -> ConfigDict:
    config = tiny()
    config.update(smoke_pretraining())
    config.update(seeds=(0,), draws=1)
    config.linear.labels_per_class = (2, 5)
    config.finetune.update(labels_per_class=(4,), steps=2, batch_size=16, learning_rates=(1e-3,))
    return config


SCALES = {"tiny": tiny, "smoke": smoke}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("label_efficiency", scale, SCALES)

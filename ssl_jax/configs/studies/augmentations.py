"""Operations of the views, left out or alone. Scales: tiny (about ten minutes on two CPU cores), smoke (for tests)."""

from ml_collections import ConfigDict

from ssl_jax import recipes
from ssl_jax.studies.base import base_config, smoke_pretraining, tiny_pretraining


def tiny() -> ConfigDict:
    config = base_config("augmentations")
    config.update(tiny_pretraining(steps=150))
    config.operations = ()  # some of crop, flip, brightness, ...; empty: all that the views have
    config.linear.labels_per_class = (10,)
    return config


def smoke() -> ConfigDict:
    config = tiny()
    config.update(smoke_pretraining())
    config.update(seeds=(0,), draws=1, operations=("crop",))
    config.linear.labels_per_class = (2,)
    return config


SCALES = {"tiny": tiny, "smoke": smoke}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("augmentations", scale, SCALES)

"""Methods under one budget. Scales: tiny (about fifteen minutes on two CPU cores), smoke (for tests)."""

from ml_collections import ConfigDict

from ssl_jax import recipes
from ssl_jax.studies.base import base_config, smoke_pretraining, tiny_pretraining


def tiny() -> ConfigDict:
    config = base_config("methods")
    names = ("simclr", "moco_v2", "byol", "barlow_twins", "vicreg", "supervised")
    config.methods = tuple(f"{name}:tiny" for name in names)
    config.overrides = tiny_pretraining(steps=150)["overrides"]
    config.linear.labels_per_class = (10, 100)
    return config


def smoke() -> ConfigDict:
    config = tiny()
    config.methods = ("simclr:tiny", "byol:tiny")
    config.overrides = smoke_pretraining()["overrides"]
    config.update(seeds=(0,), draws=1)
    config.linear.labels_per_class = (2,)
    return config


SCALES = {"tiny": tiny, "smoke": smoke}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("methods", scale, SCALES)

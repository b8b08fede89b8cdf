"""Fine-tuning accuracy over steps. Scales: tiny (about ten minutes on two CPU cores), smoke (seconds, for tests)."""

from ml_collections import ConfigDict

from ssl_jax import recipes
from ssl_jax.studies.base import base_config, smoke_pretraining, tiny_pretraining


def tiny() -> ConfigDict:
    config = base_config("convergence")
    config.seeds = (0, 1, 2, 3, 4)
    config.update(tiny_pretraining())
    config.linear.labels_per_class = (20,)
    config.finetune.update(labels_per_class=(20,), measured=(0, 5, 10, 15, 20, 30, 40, 60, 80, 100))
    return config


def smoke() -> ConfigDict:
    config = tiny()
    config.update(smoke_pretraining())
    config.update(seeds=(0, 1), draws=1)
    config.linear.labels_per_class = ()
    config.finetune.update(labels_per_class=(4,), steps=2, batch_size=16, learning_rates=(1e-3,), measured=(0, 1, 2))
    return config


SCALES = {"tiny": tiny, "smoke": smoke}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("convergence", scale, SCALES)

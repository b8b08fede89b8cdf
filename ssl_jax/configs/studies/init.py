"""Which weights to start with. Scales: tiny (about ten minutes on two CPU cores), smoke (seconds, for tests).

One's own images are Twitter's drawings of emoji, with 1,118 test images. The given weights are of supervised training
on Fashion-MNIST in three equal channels: images of another kind. config.begin=FILE gives weights of a file in their
place, for the network of config.pretraining.
"""

from ml_collections import ConfigDict

from ssl_jax import recipes
from ssl_jax.configs.studies import domain_adaptation
from ssl_jax.studies.base import base_config, smoke_pretraining


def tiny() -> ConfigDict:
    config, emoji = base_config("init"), domain_adaptation.emoji()
    config.seeds = (0, 1, 2, 3, 4)
    config.begin = ""  # a run's directory or a file of weights, in place of `given`
    config.given = "supervised:tiny"
    config.given_overrides = domain_adaptation.tiny().source_overrides
    config.pretraining = emoji.target
    config.overrides = emoji.target_overrides
    config.supervised = emoji.supervised
    config.supervised_overrides = emoji.supervised_overrides
    config.draws = emoji.draws
    config.linear.labels_per_class = emoji.linear.labels_per_class
    config.finetune.update(emoji.finetune)
    return config


def smoke() -> ConfigDict:
    config = tiny()
    config.update(smoke_pretraining())
    config.given_overrides = config.supervised_overrides
    config.update(seeds=(0,), draws=1)
    config.linear.labels_per_class = (2,)
    config.finetune.update(labels_per_class=(4,), steps=2, batch_size=16, learning_rates=(1e-3,))
    return config


SCALES = {"tiny": tiny, "smoke": smoke}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("init", scale, SCALES)

"""What pre-training is compared with: networks without any, and the raw pixels."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ssl_jax import build, models
from ssl_jax.data.decode import shrink
from ssl_jax.evaluation.features import Batches
from ssl_jax.weights import Backbone

# Enough for running statistics of momentum 0.9 to forget their initial values (0.9^50 = 0.5 %).
CALIBRATION_BATCHES = 50
# Pixels are compared at no more than this many a side: 150,000 numbers an image would need another protocol.
PIXEL_SIDE = 32


def pixels(images: np.ndarray) -> np.ndarray:
    """Images in 0..1, no larger than PIXEL_SIDE, as rows."""
    return shrink(images, PIXEL_SIDE).reshape(len(images), -1).astype(np.float32) / 255.0


def random_backbones(config: ConfigDict, batches: Batches) -> dict[str, Backbone]:
    """Untrained backbones. How random matters: BatchNorm statistics as initialized or calibrated on training images,
    and the last BatchNorm scale of each residual block 1 or 0, move kNN by ten points and more."""
    changes: dict[str, dict[str, bool]] = {"": {}}
    if "zero_init_residual" in build.model_options(config):
        changes = {"": {"zero_init_residual": False}, "_zero_residual": {"zero_init_residual": True}}
    variants = {}
    for suffix, options in changes.items():
        variants["initial" + suffix] = initial = untrained(config, **options)
        if "batch_stats" in initial.variables:
            variants["calibrated" + suffix] = calibrate(initial, batches)
    return variants


def untrained(config: ConfigDict, **options: Any) -> Backbone:
    """As it is initialized by the config's seed; `options` of the model replace the config's."""
    module = models.create(**{**build.model_options(config), **options})
    example = jnp.zeros((1, *config.data.image_size, config.data.channels))
    variables = jax.jit(module.init)(jax.random.key(config.seed), example)
    return Backbone(module, variables, tuple(config.data.mean), tuple(config.data.std))


def calibrate(backbone: Backbone, batches: Batches) -> Backbone:
    """With BatchNorm statistics of training images."""

    @jax.jit
    def update(batch_stats, images):
        given = {"params": backbone.variables["params"], "batch_stats": batch_stats}
        return backbone.model.apply(given, images, train=True, mutable=["batch_stats"])[1]["batch_stats"]

    batch_stats, seen = backbone.variables["batch_stats"], 0
    while seen < CALIBRATION_BATCHES:  # a small data set is gone through several times
        for batch in batches():
            if seen == CALIBRATION_BATCHES:
                break
            batch_stats, seen = update(batch_stats, backbone.preprocess(batch["image"])), seen + 1
    return dataclasses.replace(backbone, variables={"params": backbone.variables["params"], "batch_stats": batch_stats})

"""What pre-training is compared with: untrained networks, and the raw pixels."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax import compiled
from ssl_jax.data.crop import shrink
from ssl_jax.data.normalization import Normalization
from ssl_jax.evaluation.features import Batches
from ssl_jax.weights import Backbone

# Enough for running statistics of momentum 0.9 to forget their initial values (0.9^50 = 0.5 %).
CALIBRATION_BATCHES = 50
# Images are shrunk to at most this side, in pixels: 150,000 numbers per image would need another protocol.
PIXEL_SIDE = 32


def pixels(normalization: Normalization, images: np.ndarray) -> np.ndarray:
    """Each image as a row of numbers in 0..1, shrunk to at most PIXEL_SIDE a side."""
    return np.asarray(normalization.unit(shrink(images, PIXEL_SIDE))).reshape(len(images), -1)


def random_backbones(
    backbone: Backbone, batches: Batches, *, image_size: tuple[int, int], seed: int
) -> dict[str, Backbone]:
    """Untrained variants of `backbone`: its architecture, but none of its variables.

    The variants differ in two choices, which move kNN by ten points and more: BatchNorm statistics as initialized or
    calibrated on training images, and the last BatchNorm scale of each residual block 1 or 0.
    """
    changes: dict[str, dict[str, bool]] = {"": {}}
    if hasattr(backbone.model, "zero_init_residual"):
        changes = {"": {"zero_init_residual": False}, "_zero_residual": {"zero_init_residual": True}}
    variants = {}
    for suffix, options in changes.items():
        variants["initial" + suffix] = initial = untrained(backbone, image_size=image_size, seed=seed, **options)
        if "batch_stats" in initial.variables:
            variants["calibrated" + suffix] = calibrate(initial, batches)
    return variants


def untrained(backbone: Backbone, *, image_size: tuple[int, int], seed: int, **options: Any) -> Backbone:
    """The backbone with initial weights drawn by the seed; `options` replace fields of its model."""
    module = backbone.model.clone(**options)
    example = jnp.zeros((1, *image_size, len(backbone.mean)))
    init = jax.jit(module.init, compiler_options=compiled.options_of_once(jax.default_backend()))
    variables = init(jax.random.key(seed), example)
    # Its facts are left out: they describe the training.
    values = dataclasses.asdict(backbone.normalization)
    return Backbone(module, variables, image_size=image_size, **values)


def calibrate(backbone: Backbone, batches: Batches) -> Backbone:
    """The backbone with BatchNorm statistics of training images."""

    @functools.partial(jax.jit, compiler_options=compiled.options_of_steps(jax.default_backend()))
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

"""A teacher's file, for the methods that need one."""

import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp

from ssl_jax import models, weights

_DIRECTORY = tempfile.TemporaryDirectory(prefix="teachers")


def with_teacher(config):
    """The config of any method; one that needs a teacher is given a small one that was never trained."""
    if config.method.name in ("clusterfit", "distill"):
        config.method.teacher = str(saved(config.data.channels or 3))
    return config


@functools.cache
def saved(channels: int = 1, **changes) -> Path:
    """A directory with the weights of a resnet8 of one stage. changes: of what its file says."""
    directory = Path(_DIRECTORY.name) / f"{channels}{abs(hash(tuple(changes.items())))}"
    directory.mkdir(exist_ok=True)  # saved() and saved(1) are two calls to functools.cache
    options = dict(stages=(1,), base_width=8)
    images = jnp.zeros((1, 28, 28, channels))
    variables = models.create("resnet8", **options).init(jax.random.key(7), images)
    meta = {
        "model": {"name": "resnet8", "stages": [1], "base_width": 8},
        "image_size": [28, 28],
        "channels": channels,
        "mean": [0.3] * channels,
        "std": [0.5] * channels,
    }
    weights.save_backbone(directory, jax.device_get(variables), meta | changes)
    return directory

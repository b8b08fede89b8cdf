"""What tests of views share."""

import functools

import jax
import numpy as np

from ssl_jax.data.augment import random_view
from ssl_jax.data.normalization import Normalization

# Nothing random, and nothing changed: the whole of a square image.
PLAIN = {"crop_area": (1.0, 1.0), "crop_aspect": (1.0, 1.0), "flip": 0.0}


def random_images(n, height, width, channels):
    return np.random.default_rng(0).integers(0, 256, (n, height, width, channels), dtype=np.uint8)


def unit(channels):
    """The normalization that leaves 0..1 as it is."""
    return Normalization((0.0,) * channels, (1.0,) * channels)


def many_views(image, augmentation, n=4000):
    """float32 [n, height, width, channels] in 0..1: views of one image by n keys."""
    return views_and_boxes(image, augmentation, n)[0]


def views_and_boxes(image, augmentation, n):
    """(views, boxes)"""

    @jax.jit
    def run(key, image):
        view = functools.partial(random_view, image=image, augmentation=augmentation)
        return jax.vmap(lambda key: view(key))(jax.random.split(key, n))

    return jax.device_get(run(jax.random.key(0), np.float32(image / 255 if image.dtype == np.uint8 else image)))

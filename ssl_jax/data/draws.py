"""The random numbers of one view."""

import math

import jax.numpy as jnp
import numpy as np
from jax import random
from jaxtyping import Array, Float, Key

from ssl_jax.data.crop import CROP_TRIES

Draws = dict[str, Float[Array, "..."]]
# Shapes of a view's random numbers, uniform in [0, 1). All are drawn at once, needed or not: one call of the generator
# is cheapest, and turning an operation on or off does not change the draws of the others.
DRAWS = {
    "crop": (CROP_TRIES, 4),
    "flip": (),
    "jitter": (),
    "order": (4,),
    "brightness": (),
    "contrast": (),
    "saturation": (),
    "hue": (),
    "grayscale": (),
    "blur": (),
    "blur_sigma": (),
    "solarize": (),
    "rotate": (),
    "photometric": (),
    "bits": (),
    "sharpness": (),
    "threshold": (),
}
# Operations with a key of their own, and its number. What they draw depends on the image's shape, or they came after
# DRAWS: one more number there could change all others.
OWN_KEYS = {
    "policy": 1,
    "flip_vertical": 2,
    "quarter_turns": 3,
    "gamma": 4,
    "channel_mix": 5,
    "channel_gain": 6,
    "channel_shift": 7,
    "noise": 8,
    "channel_drop": 9,
    "shift": 10,
}


def draw(key: Key[Array, ""]) -> Draws:
    """The numbers of DRAWS."""
    ends = np.cumsum([math.prod(shape) for shape in DRAWS.values()])
    parts = jnp.split(random.uniform(key, (ends[-1],)), ends[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(DRAWS.items(), parts, strict=True)}


def own_key(key: Key[Array, ""], operation: str) -> Key[Array, ""]:
    """The view's key for an operation of OWN_KEYS."""
    return random.fold_in(key, OWN_KEYS[operation])

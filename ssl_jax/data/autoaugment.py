"""AutoAugment's policy for ImageNet, on the device. `jax.vmap` maps it over images, each with its own random numbers.

Source: Cubuk et al. 2018, arXiv:1805.09501, table 9 of the appendix; strengths as in timm's "original"
(timm/data/auto_augment.py): a magnitude m is m / 10 of the way through the operation's range.
"""

import jax.numpy as jnp
import numpy as np
from jax import random
from jaxtyping import Array, Key

from ssl_jax.data.randaugment import OPERATIONS, Image, operate

# Each sub-policy has two operations: (kind, probability, magnitude).
POLICY = (
    (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 5)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
    (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("equalize", 0.4, 4), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 7)),
    (("posterize", 0.8, 5), ("equalize", 1.0, 2)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, 8), ("posterize", 0.4, 6)),
    (("rotate", 0.8, 8), ("color", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, 2)),
    (("equalize", 0.0, 7), ("equalize", 0.8, 8)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("color", 1.0, 2)),
    (("color", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 8)),
    (("shear_x", 0.6, 5), ("equalize", 1.0, 9)),
    (("color", 0.4, 0), ("equalize", 0.6, 3)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 5)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
)
FILL = 128.0  # in 0..255: the value of pixels that come from outside the image
SIGNED = ("rotate", "shear_x")  # go to either side, with equal probability


def auto_augment(key: Key[Array, ""], image: Image) -> Image:
    """The image after one of the 25 sub-policies. Each of its two operations is applied with its probability.

    Args:
      image: in 0..1, of any number of channels; it is rounded to 8 bits.
    Returns: in 0..1, in steps of 1/255.
    """
    image = jnp.round(255.0 * image)
    fill = jnp.full(len(image), FILL)
    kinds = np.array([[OPERATIONS.index(name) for name, _, _ in pair] for pair in POLICY])
    probabilities = np.array([[probability for _, probability, _ in pair] for pair in POLICY], np.float32)
    levels = np.array([[level(name, magnitude) for name, _, magnitude in pair] for pair in POLICY], np.float32)
    signed = np.array([[name in SIGNED for name, _, _ in pair] for pair in POLICY])
    key_choice, key_layers = random.split(key)
    choice = random.randint(key_choice, (), 0, len(POLICY))
    chosen = [jnp.asarray(table)[choice] for table in (kinds, probabilities, levels, signed)]
    draws = random.uniform(key_layers, (2, 2))
    for kind, probability, strength, two_sided, (draw, coin) in zip(*chosen, draws, strict=True):
        sign = jnp.where(two_sided & (coin < 0.5), -1.0, 1.0)
        image = jnp.where(draw < probability, operate(image, kind, strength, sign, fill), image)
    return image / 255.0


def level(name: str, magnitude: int) -> float:
    """The strength for `operate` that has the effect of AutoAugment's magnitude.

    A larger magnitude leaves more bits (4 to 8), solarizes fewer values, and gives more color, contrast and sharpness,
    by a factor from 0.1 to 1.9.
    """
    share = magnitude / 10
    if name == "posterize":
        return -int(4 * share) / 4
    if name == "solarize":
        return 1.0 - int(256 * share) / 256
    if name in ("color", "contrast", "sharpness"):
        return 2.0 * share - 1.0
    return share

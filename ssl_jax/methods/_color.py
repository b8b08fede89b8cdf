"""Colors in bins, which colorization and the split-brain autoencoder predict at a quarter of the resolution.

A color is (a, b) of CIE L*a*b*, as models/lab.py has it. How often each bin occurs is measured while training, as

    prior = {"mass": float32 [bins], "batches": int32 scalar}

in the method's state: the mean, over all batches so far, of what each bin has of all positions. Zhang et al. counted
the bins of ImageNet once, beforehand; a method reads no files, and its own images are the ones to be rebalanced.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from ssl_jax import losses
from ssl_jax.losses._common import global_mean, mean_where
from ssl_jax.models.decoder import ConvDecoder
from ssl_jax.models.lab import lab_of_normalized, normalized_of_lab

Colors = Float[Array, "batch height width 2"]
Prior = dict[str, Any]

STRIDE = 4  # pixels from one position to the next: every fourth row and column is predicted
# a: (least b, most b). Middles of bins 10 a side. What of the grid a screen shows depends on how it is counted (233 to
# 261 bins), so this is the authors' released list; about 50 of its bins never occur.
B_OF_A = {
    -90: (50, 90), -80: (20, 90), -70: (0, 90), -60: (-20, 90), -50: (-30, 100), -40: (-40, 100), -30: (-50, 100),
    -20: (-50, 100), -10: (-60, 100), 0: (-70, 100), 10: (-80, 90), 20: (-80, 90), 30: (-90, 90), 40: (-100, 90),
    50: (-100, 80), 60: (-110, 80), 70: (-110, 80), 80: (-110, 70), 90: (-110, 70), 100: (-90, 0),
}  # fmt: skip
BINS = np.array([(a, b) for a, (low, high) in B_OF_A.items() for b in range(low, high + 1, 10)], np.float32)
NEAREST, SIGMA = 10, 5.0  # of the soft targets; the paper has 5 bins, its code 10
GRAY = 5.0  # an image whose |a| and |b| are nowhere above it has no color


def subsample(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch rows columns channels"]:
    """The positions that are predicted."""
    return x[:, ::STRIDE, ::STRIDE]


def subsampled_size(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of what `subsample` leaves of images of this size."""
    return -(-size[0] // STRIDE), -(-size[1] // STRIDE)


def enlarge(
    colors: Float[Array, "batch rows columns 2"], size: tuple[int, int]
) -> Float[Array, "batch height width 2"]:
    """Back to images of this size, linearly between the positions that `subsample` took."""
    rows, columns = (
        np.maximum(1.0 - np.abs(np.minimum(np.arange(new) / STRIDE, old - 1)[:, None] - np.arange(old)), 0.0)
        for new, old in zip(size, colors.shape[1:3], strict=True)
    )
    return jnp.einsum("yi,bijc,xj->byxc", rows, colors, columns)


def encode(colors: Float[Array, "*positions 2"]) -> Float[Array, "*positions bins"]:
    """Probabilities of the `NEAREST` bins (and of those as far as the last), by a Gaussian of their distance."""
    distance = jnp.sum((colors[..., None, :] - BINS) ** 2, axis=-1)
    nearest = -lax.top_k(-distance, NEAREST)[0]
    # Relative to the nearest, so that a color far from all bins has one, too.
    share = jnp.exp((nearest[..., :1] - distance) / (2 * SIGMA**2))
    share = jnp.where(distance <= nearest[..., -1:], share, 0.0)
    return share / jnp.sum(share, axis=-1, keepdims=True)


def nearest(colors: Float[Array, "*positions 2"]) -> Float[Array, "*positions bins"]:
    """Probability 1 of the nearest bin."""
    distance = jnp.sum((colors[..., None, :] - BINS) ** 2, axis=-1)
    return jax.nn.one_hot(jnp.argmin(distance, axis=-1), len(BINS))


def annealed_mean(logits: Float[Array, "*positions bins"], temperature: float) -> Float[Array, "*positions 2"]:
    """The mean color under the probabilities made sharper: temperature 1 gives their mean, 0 the likeliest bin.

    Source: Zhang et al. 2016, arXiv:1603.08511, eq. 5.
    """
    return jnp.matmul(jax.nn.softmax(logits / temperature, axis=-1), BINS, precision="highest")


def colored(colors: Colors) -> Bool[Array, " batch"]:
    """Which images have a color anywhere."""
    return jnp.any(jnp.abs(colors) > GRAY, axis=(1, 2, 3))


def first_prior() -> Prior:
    return {"mass": jnp.zeros(len(BINS)), "batches": jnp.zeros((), jnp.int32)}


def update_prior(
    prior: Prior,
    targets: Float[Array, "batch height width bins"],
    counted: Bool[Array, " batch"],
    axis_name: str | None,
) -> Prior:
    """The prior after one more batch, of whose images those `counted` count."""
    share = jnp.mean(targets * counted[:, None, None, None], axis=(0, 1, 2))
    batches = prior["batches"] + 1
    mass = prior["mass"] + (global_mean(share, axis_name) - prior["mass"]) / batches
    return {"mass": mass, "batches": batches}


def rarity(prior: Prior, uniform_share: float) -> Float[Array, " bins"]:
    """The weight of each bin: the larger the rarer it is, 1 on average over positions, 0 where a bin never occurs.

    Proportional to 1 / ((1 - uniform_share) * p + uniform_share * u), p being the bins' probabilities and u uniform
    over those that occur. uniform_share 1 gives all the same weight.

    Source: Zhang et al. 2016, arXiv:1603.08511, eq. 4. Their smoothing of p is that of the soft targets, of which it
    is the mean.
    """
    mass = prior["mass"]
    occurs = mass > 0
    p = mass / jnp.maximum(jnp.sum(mass), 1e-30)
    u = occurs / jnp.maximum(jnp.sum(occurs), 1)
    weights = jnp.where(occurs, 1.0 / jnp.where(occurs, (1.0 - uniform_share) * p + uniform_share * u, 1.0), 0.0)
    return weights / jnp.maximum(jnp.sum(p * weights), 1e-30)


def loss(
    logits: Float[Array, "batch height width bins"],
    colors: Colors,
    prior: Prior,
    *,
    encode: Callable[[Colors], Float[Array, "*positions bins"]] = encode,
    uniform_share: float,
    temperature: float,
    axis_name: str | None,
) -> tuple[Float[Array, ""], Prior, dict[str, Array]]:
    """(losses.colorization of logits that predict `colors`, as `encode` makes targets of them, the new prior, metrics).

    Positions of images without color weigh 0. The metrics: uniform_loss, that of predictions that are all alike;
    colored_share, of the images; and over the positions of those with color, how far in (a, b) the annealed mean of the
    prediction is from the truth, color_distance, and gray from it, gray_distance.
    """
    targets, counted = lax.stop_gradient((encode(colors), colored(colors)))
    prior = update_prior(prior, targets, counted, axis_name)
    weights = rarity(prior, uniform_share)[jnp.argmax(targets, axis=-1)] * counted[:, None, None]
    positions = (len(colors), -1)
    value = losses.colorization(
        logits.reshape(*positions, len(BINS)),
        targets.reshape(*positions, len(BINS)),
        weights.reshape(positions),
        axis_name=axis_name,
    )
    everywhere = jnp.broadcast_to(counted[:, None, None], weights.shape)
    metrics = {
        "uniform_loss": math.log(len(BINS)) * jnp.mean(weights),
        "colored_share": jnp.mean(counted, dtype=jnp.float32),
        "color_distance": mean_where(
            jnp.linalg.norm(annealed_mean(lax.stop_gradient(logits), temperature) - colors, axis=-1),
            everywhere,
            axis_name,
        ),
        "gray_distance": mean_where(jnp.linalg.norm(colors, axis=-1), everywhere, axis_name),
    }
    return value, prior, metrics


def decoder(images: Float[Array, "_ height width channels"], bins: int, width: int) -> ConvDecoder:
    """From a backbone's map of images of this size to logits [batch, rows, columns, bins] where `subsample` looks."""
    return ConvDecoder(subsampled_size(images.shape[1:3]), bins, width=width)


def predict(
    method: Any, params: Any, state: Any, images: Any, decoder: str, half: slice = slice(None)
) -> Float[Array, "batch rows columns bins"]:
    """Logits in evaluation mode, of the method's decoder of this name on `half` of its backbone's features."""
    features = method.backbone.apply(method.backbone_variables(params, state), images, pool=False)[..., half]
    variables = {"params": params[decoder], "batch_stats": state["batch_stats"][decoder]}
    return method.decoders(images)[decoder].apply(variables, features)


def pictures(
    method: Any, params: Any, state: Any, batch: Any, rng: Any
) -> dict[str, Float[Array, "batch height width 3"]]:
    """The images, their lightness, and that in the colors that are predicted from it; written
    `pictures = _color.pictures` in a class with color_logits and temperature."""
    (images,) = batch["views"]
    mean, std = method.backbone.mean, method.backbone.std
    lightness = lab_of_normalized(images, mean, std)[..., :1]
    colors = annealed_mean(method.color_logits(params, state, images), method.temperature)
    full = enlarge(colors, images.shape[1:3])

    def show(colors):
        return normalized_of_lab(jnp.concatenate([lightness, colors], axis=-1), mean, std)

    return {"image": images, "gray": show(jnp.zeros_like(full)), "colorized": show(full)}

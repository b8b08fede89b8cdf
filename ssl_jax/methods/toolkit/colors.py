"""Colors in bins, which colorization and the split-brain autoencoder predict at a quarter of the resolution.

A color is (a, b) of CIE L*a*b*, as models/lab.py has it. How often each bin occurs is measured during training. The
method keeps it in its state:

    prior = {"mass": float32 [bins], "batches": int32 scalar}

"mass" is the share of all positions that each bin has, averaged over all batches so far. Zhang et al. counted the bins
of ImageNet once, beforehand. A method here reads no files, and rebalances the images that it trains on.
"""

# pyright: reportUnknownMemberType=false

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Key

from ssl_jax import losses
from ssl_jax.methods.contract import Base, Batch, Params, State
from ssl_jax.models.decoder import ConvDecoder
from ssl_jax.models.lab import lab_of_normalized, normalized_of_lab
from ssl_jax.ops import global_mean, mean_where

Colors = Float[Array, "batch height width 2"]
Prior = dict[str, Array]

STRIDE = 4  # pixels from one predicted position to the next: every fourth row and column
# a: (least b, most b), the middles of bins of 10 x 10. How much of the grid a screen can show depends on how it is
# counted (233 to 261 bins), so this is the authors' released list. About 50 of its bins never occur.
B_OF_A = {
    -90: (50, 90), -80: (20, 90), -70: (0, 90), -60: (-20, 90), -50: (-30, 100), -40: (-40, 100), -30: (-50, 100),
    -20: (-50, 100), -10: (-60, 100), 0: (-70, 100), 10: (-80, 90), 20: (-80, 90), 30: (-90, 90), 40: (-100, 90),
    50: (-100, 80), 60: (-110, 80), 70: (-110, 80), 80: (-110, 70), 90: (-110, 70), 100: (-90, 0),
}  # fmt: skip
BINS = np.array([(a, b) for a, (low, high) in B_OF_A.items() for b in range(low, high + 1, 10)], np.float32)
NEAREST, SIGMA = 10, 5.0  # bins of a soft target, and its Gaussian's deviation; the paper has 5 bins, its code 10
GRAY = 5.0  # an image has a color where |a| or |b| is above it


def subsample(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch rows columns channels"]:
    """The positions that are predicted."""
    return x[:, ::STRIDE, ::STRIDE]


def subsampled_size(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of what `subsample` leaves of images of this size."""
    return -(-size[0] // STRIDE), -(-size[1] // STRIDE)


def enlarge(
    colors: Float[Array, "batch rows columns 2"], size: tuple[int, int]
) -> Float[Array, "batch height width 2"]:
    """Enlarges colors to images of this size, linearly between the positions that `subsample` took."""
    rows, columns = (
        np.maximum(1.0 - np.abs(np.minimum(np.arange(new) / STRIDE, old - 1)[:, None] - np.arange(old)), 0.0)
        for new, old in zip(size, colors.shape[1:3], strict=True)
    )
    return jnp.einsum("yi,bijc,xj->byxc", rows, colors, columns)


def encode(colors: Float[Array, "*positions 2"]) -> Float[Array, "*positions bins"]:
    """Probabilities of the `NEAREST` bins, by a Gaussian of their distance. Bins as far as the last one count too."""
    distance = jnp.sum((colors[..., None, :] - BINS) ** 2, axis=-1)
    nearest = -lax.top_k(-distance, NEAREST)[0]
    # Relative to the nearest, so that a color far from all bins has probabilities, too.
    share = jnp.exp((nearest[..., :1] - distance) / (2 * SIGMA**2))
    share = jnp.where(distance <= nearest[..., -1:], share, 0.0)
    return share / jnp.sum(share, axis=-1, keepdims=True)


def nearest(colors: Float[Array, "*positions 2"]) -> Float[Array, "*positions bins"]:
    """Probability 1 for the nearest bin."""
    distance = jnp.sum((colors[..., None, :] - BINS) ** 2, axis=-1)
    return jax.nn.one_hot(jnp.argmin(distance, axis=-1), len(BINS))


def annealed_mean(logits: Float[Array, "*positions bins"], temperature: float) -> Float[Array, "*positions 2"]:
    """The mean color under softmax(logits / temperature). At temperature 1 it is the mean, towards 0 the likeliest bin.

    Source: Zhang et al. 2016, arXiv:1603.08511, eq. 5.
    """
    return jnp.matmul(jax.nn.softmax(logits / temperature, axis=-1), BINS, precision="highest")


def colored(colors: Colors) -> Bool[Array, " batch"]:
    """Which images have a color anywhere."""
    return jnp.any(jnp.abs(colors) > GRAY, axis=(1, 2, 3))


def first_prior() -> Prior:
    """The prior before the first batch."""
    return {"mass": jnp.zeros(len(BINS)), "batches": jnp.zeros((), jnp.int32)}


def update_prior(
    prior: Prior,
    targets: Float[Array, "batch height width bins"],
    counted: Bool[Array, " batch"],
    axis_name: str | None,
) -> Prior:
    """The prior after one more batch. Only the images where `counted` is True count."""
    share = jnp.mean(targets * counted[:, None, None, None], axis=(0, 1, 2))
    batches = prior["batches"] + 1
    mass = prior["mass"] + (global_mean(share, axis_name) - prior["mass"]) / batches
    return {"mass": mass, "batches": batches}


def rarity(prior: Prior, uniform_share: float) -> Float[Array, " bins"]:
    """The weight of each bin. A rarer bin has a larger weight; the average over positions is 1.

    Proportional to 1 / ((1 - uniform_share) * p + uniform_share * u). p are the bins' probabilities, and u is uniform
    over the bins that occur. With uniform_share=1 all bins have the same weight. A bin that never occurs has weight 0.

    Source: Zhang et al. 2016, arXiv:1603.08511, eq. 4. Their p is smoothed; here p is the mean of the soft targets,
    which are smooth.
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
    """(losses.colorization of logits that predict `colors`, the new prior, metrics).

    `encode` makes the targets from `colors`. Positions of images without color weigh 0. The metrics are:
      uniform_loss: the loss if all bins had the same probability.
      colored_share: the share of the images that have a color.
      color_distance: the distance in (a, b) from the annealed mean of the prediction to the truth.
      gray_distance: the distance in (a, b) from gray to the truth. Both distances are means over the positions of
        images with a color.
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
            _lengths(annealed_mean(lax.stop_gradient(logits), temperature) - colors),
            everywhere,
            axis_name,
        ),
        "gray_distance": mean_where(_lengths(colors), everywhere, axis_name),
    }
    return value, prior, metrics


def _lengths(colors: Colors) -> Float[Array, "batch height width"]:
    return cast(Array, jnp.linalg.norm(colors, axis=-1))


class ColorMethod(Base):
    """What colorization and split-brain share: the pictures of an image's lightness in predicted colors."""

    temperature: float  # of the annealed mean

    def decoders(self, images: Float[Array, "batch height width channels"]) -> dict[str, nn.Module]:
        """Modules from the backbone's feature map to logits, for images of this size."""
        raise NotImplementedError

    def color_logits(
        self, params: Params, state: State, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch rows columns bins"]:
        """Logits of the colors, in evaluation mode."""
        raise NotImplementedError

    def pictures(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""]
    ) -> Mapping[str, Float[Array, "batch height width channels"]]:
        """The images, their lightness, and their lightness in the predicted colors."""
        (images,) = batch["views"]
        mean, std = self.backbone.mean, self.backbone.std
        lightness = lab_of_normalized(images, mean, std)[..., :1]
        colors = annealed_mean(self.color_logits(params, state, images), self.temperature)
        _, height, width, _ = images.shape
        full = enlarge(colors, (height, width))

        def show(colors: Colors) -> Float[Array, "batch height width 3"]:
            return normalized_of_lab(jnp.concatenate([lightness, colors], axis=-1), mean, std)

        return {"image": images, "gray": show(jnp.zeros_like(full)), "colorized": show(full)}


def decoder(images: Float[Array, "_ height width channels"], bins: int, width: int) -> ConvDecoder:
    """A backbone's map of images of this size -> logits [batch, rows, columns, bins] at `subsample`'s positions."""
    rows, columns = images.shape[1:3]
    return ConvDecoder(subsampled_size((rows, columns)), bins, width=width)


def predict(
    method: ColorMethod,
    params: Params,
    state: State,
    images: Float[Array, "batch height width channels"],
    decoder: str,
    half: slice = slice(None),
) -> Float[Array, "batch rows columns bins"]:
    """Logits in evaluation mode, from the method's decoder of this name.

    half: the dimensions of the backbone's feature map that the decoder takes.
    """
    variables = method.backbone_variables(params, state)
    features: Any = method.backbone.apply(variables, images, method="feature_map")
    variables = {"params": params[decoder], "batch_stats": state["batch_stats"][decoder]}
    logits: Any = method.decoders(images)[decoder].apply(variables, features[..., half])
    return logits

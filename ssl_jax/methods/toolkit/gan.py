"""What methods with a discriminator share: the generator's codes, and the players' losses."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

from ssl_jax import losses, ops
from ssl_jax.methods.contract import Params, State
from ssl_jax.methods.toolkit import networks, tiling


def codes(rng: Key[Array, ""], index: ops.Index, latent: int) -> Float[Array, "batch latent"]:
    """One code for each image, uniform in -1..1. It depends on the key and the image's index alone."""
    return 2.0 * tiling.uniform(rng, index, (latent,)) - 1.0


def discriminator_loss(
    real: Float[Array, "batch 1"], fake: Float[Array, "batch 1"], axis_name: str | None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(loss, share of the images that it classifies correctly) from its logits of real and of made images."""
    loss = losses.adversarial(real, True, axis_name=axis_name) + losses.adversarial(fake, False, axis_name=axis_name)
    return loss, accuracy(real, fake)


def accuracy(real: Float[Array, "batch scores"], fake: Float[Array, "batch scores"]) -> Float[Array, ""]:
    """Share of the images of which a discriminator's scores of real and of made images have the right sign."""
    return (jnp.mean(real > 0) + jnp.mean(fake < 0)) / 2


class Verdict(NamedTuple):
    """Of a discriminator of images. stats: its new BatchNorm statistics, which follow the real images."""

    discriminator_loss: Float[Array, ""]
    generator_loss: Float[Array, ""]
    accuracy: Float[Array, ""]
    stats: dict[str, Any]


def judged(
    discriminator: nn.Module,
    params: Params,
    stats: State,
    real: Float[Array, "batch height width channels"],
    made: Float[Array, "batch height width channels"],
    axis_name: str | None,
) -> Verdict:
    """The discriminator's loss, whose gradient is for `params` alone, and the generator's, for `made` alone.

    discriminator: images -> logits [batch, 1]. Real images and made ones pass by themselves.
    """

    def judge(params: Params, images: Float[Array, "batch height width channels"]) -> tuple[Any, dict[str, Any]]:
        return networks.train_apply(discriminator, params, stats, images, axis_name=axis_name)

    of_real, new = judge(params, real)
    of_made, _ = judge(params, lax.stop_gradient(made))
    fooled, _ = judge(lax.stop_gradient(params), made)
    loss, share = discriminator_loss(of_real, of_made, axis_name)
    return Verdict(loss, losses.adversarial(fooled, True, axis_name=axis_name), share, new)

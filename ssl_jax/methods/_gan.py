"""What DCGAN and BiGAN share: the generator's codes, and the discriminator's loss."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses
from ssl_jax.methods import _tiles


def codes(rng: Key[Array, ""], index: Int[Array, " batch"], latent: int) -> Float[Array, "batch latent"]:
    """Uniform in -1..1, by the images' indices."""
    return 2.0 * _tiles.uniform(rng, index, (latent,)) - 1.0


def discriminator_loss(
    real: Float[Array, "batch 1"], fake: Float[Array, "batch 1"], axis_name: str | None
) -> tuple[Any, Any]:
    """(loss, the share of both that it tells right) of its logits of real and of made images."""
    loss = losses.adversarial(real, True, axis_name=axis_name) + losses.adversarial(fake, False, axis_name=axis_name)
    return loss, (jnp.mean(real > 0) + jnp.mean(fake < 0)) / 2

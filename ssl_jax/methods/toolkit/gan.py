"""What DCGAN and BiGAN share: the generator's codes, and the discriminator's loss."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ssl_jax import losses, ops
from ssl_jax.methods.toolkit import tiling


def codes(rng: Key[Array, ""], index: ops.Index, latent: int) -> Float[Array, "batch latent"]:
    """One code for each image, uniform in -1..1. It depends on the key and the image's index alone."""
    return 2.0 * tiling.uniform(rng, index, (latent,)) - 1.0


def discriminator_loss(
    real: Float[Array, "batch 1"], fake: Float[Array, "batch 1"], axis_name: str | None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(loss, share of the images that it classifies correctly) from its logits of real and of made images."""
    loss = losses.adversarial(real, True, axis_name=axis_name) + losses.adversarial(fake, False, axis_name=axis_name)
    return loss, (jnp.mean(real > 0) + jnp.mean(fake < 0)) / 2

"""Pre-train with any optimizer of optax, and an augmentation of your own."""

import jax
import jax.numpy as jnp
import optax

import ssl_jax


def noisy_mirror(rng, image):
    """image: float32 [height, width, channels] in 0..1 of one example -> a view. It is jitted, and batched.
    The random numbers depend on the seed, the step and the example alone."""
    flip, noise = jax.random.split(rng)
    image = jnp.where(jax.random.bernoulli(flip), image[:, ::-1], image)
    return jnp.clip(image + 0.1 * jax.random.normal(noise, image.shape), 0.0, 1.0)


config = ssl_jax.get_config("simclr:tiny")
config.steps = 4
run = ssl_jax.pretrain(config, optimizer=optax.lion(1e-4), augment=noisy_mirror, workdir="runs/own_optimizer")
print(run.facts["optimizer"], run.facts["augment"])

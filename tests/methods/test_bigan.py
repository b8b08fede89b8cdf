import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule

RUN = Schedule(batch_size=8, steps=100, steps_per_epoch=10, num_images=60)
close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-7)


def setup():
    method = METHODS["bigan"](
        models.create("resnet8", stages=(1,), width=2.0),
        RUN,
        latent=5,
        generator_width=4,
        discriminator_width=4,
        hidden=8,
    )
    x = jax.random.uniform(jax.random.key(0), (8, 16, 16, 1), minval=-1.0)
    return method, {"views": (x,), "index": jnp.arange(8)}, *method.init(jax.random.key(1), x[:1])


@pytest.mark.slow
def test_each_player_is_moved_by_its_own_loss_alone():
    method, batch, params, state = setup()

    def term(name, params):
        return method.loss(params, state, batch, jax.random.key(2)).metrics[name]

    both = jax.grad(lambda params: method.loss(params, state, batch, jax.random.key(2)).loss)(params)
    losses = {
        name: jax.grad(functools.partial(term, f"{name}_loss"))(params) for name in ("discriminator", "generator")
    }
    for player, own in {
        "discriminator": "discriminator",
        "generator": "generator",
        "backbone": "generator",
        "code": "generator",
    }.items():
        jax.tree.map(close, both[player], losses[own][player])
        other = losses["generator" if own == "discriminator" else "discriminator"][player]
        assert not any(np.any(g) for g in jax.tree.leaves(other))


def test_the_generators_loss_is_the_discriminators_with_labels_exchanged():
    method, batch, params, state = setup()
    # A discriminator that is sure of nothing but a bias: its logit is 1.3 for everything.
    params["discriminator"]["logit"] = {
        "kernel": jnp.zeros_like(params["discriminator"]["logit"]["kernel"]),
        "bias": jnp.array([1.3]),
    }
    metrics = method.loss(params, state, batch, jax.random.key(2)).metrics
    real, fake = np.log(1 + np.exp(-1.3)), np.log(1 + np.exp(1.3))
    np.testing.assert_allclose(metrics["discriminator_loss"], real + fake, rtol=1e-5)
    np.testing.assert_allclose(metrics["generator_loss"], fake + real, rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], 0.5)


def test_pictures_go_through_encoder_and_generator():
    method, batch, params, state = setup()
    pictures = method.pictures(params, state, batch, jax.random.key(0))
    assert {name: made.shape for name, made in pictures.items()} == dict.fromkeys(
        ("image", "reconstruction", "made"), (8, 16, 16, 1)
    )
    other = {**batch, "views": (-batch["views"][0],)}
    again = method.pictures(params, state, other, jax.random.key(0))
    np.testing.assert_array_equal(again["made"], pictures["made"])
    assert np.any(again["reconstruction"] != pictures["reconstruction"])

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule
from tests.methods import drawn

RUN = Schedule(batch_size=4, steps=100, steps_per_epoch=10, num_images=60)
X = np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 1)).astype(np.float32)
BATCH = {"views": (X,), "index": np.arange(4)}
SMALL = dict(latent=3, generator_width=2, discriminator_width=2, hidden=4, blocks=1, encoder_hidden=4, encoder_blocks=1)


def make():
    return METHODS["bigbigan"](models.create("resnet8", stages=(1,), width=0.25), RUN, **SMALL)


@functools.cache
def step():
    """The terms of the loss, and their gradients."""
    method = make()

    @jax.jit
    def run(params, state, batch):
        def terms(params):
            output = method.loss(params, state, batch, jax.random.key(2))
            metrics = output.metrics
            return jnp.stack([output.loss, metrics["discriminator_loss"], metrics["generator_loss"]])

        return terms(params), jax.jacrev(terms)(params)

    return jax.device_get(run(*drawn.draw(method, X[:1]), BATCH))


def test_each_player_is_moved_by_its_own_loss_alone():
    (loss, of_discriminator, of_others), gradients = step()
    np.testing.assert_allclose(loss, of_discriminator + of_others, rtol=1e-5)
    for name, found in gradients.items():
        own, other = (1, 2) if name == "discriminator" else (2, 1)
        for whole in jax.tree.leaves(found):
            np.testing.assert_allclose(whole[0], whole[own], rtol=1e-4, atol=1e-6)
            assert not np.any(whole[other])
        assert any(np.any(whole[0]) for whole in jax.tree.leaves(found)), name


def test_losses_are_the_hinge_of_each_score_and_the_difference_of_their_sums():
    rng, method = np.random.default_rng(0), make()
    real, fake = (jnp.asarray(2 * rng.normal(size=(5, 3)), jnp.float32) for _ in range(2))
    hinge = np.maximum(0, 1 - real).mean(0).sum() + np.maximum(0, 1 + fake).mean(0).sum()
    np.testing.assert_allclose(method.of_discriminator(real, fake, None), hinge, rtol=1e-5)
    difference = np.sum(real, axis=1).mean() - np.sum(fake, axis=1).mean()
    np.testing.assert_allclose(method.of_others(real, fake, None), difference, rtol=1e-4)
    nothing = jnp.zeros((5, 3))
    assert method.of_discriminator(nothing, nothing, None) + method.of_others(nothing, nothing, None) == 6.0
    assert method.chance_level == 6.0


def test_a_code_is_drawn_of_each_images_distribution():
    method, index = make(), jnp.arange(3000)
    encoded = jnp.tile(jnp.array([1.0, 2.0, 3.0, 0.0, 0.5, 2.0]), (3000, 1))
    codes = np.asarray(jax.jit(method.encoding)(encoded, jax.random.key(0), index))
    np.testing.assert_allclose(codes.mean(0), [1.0, 2.0, 3.0], atol=0.15)
    np.testing.assert_allclose(codes.std(0), [0.0, 0.5, 2.0], rtol=0.05, atol=1e-6)
    np.testing.assert_array_equal(method.encoding(encoded, None, index), encoded[:, :3])
    turned = jax.jit(method.encoding)(encoded, jax.random.key(0), index[::-1])
    np.testing.assert_array_equal(turned[::-1], codes)


def test_deviations_are_above_zero():
    head = make().encoder["code"]
    h = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    encoded = jax.jit(lambda h: head.init_with_output(jax.random.key(0), h)[0])(h)
    assert encoded.shape == (5, 6) and np.all(np.asarray(encoded)[:, 3:] > 0)


def test_views_that_are_not_square_are_refused():
    with pytest.raises(ValueError, match="square images, got views of 8x6 pixels"):
        make().players(jnp.zeros((1, 8, 6, 1)))

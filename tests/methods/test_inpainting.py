import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Run
from ssl_jax.methods.inpainting import ChannelwiseDense

RUN = Run(batch_size=4, steps=100, steps_per_epoch=10, num_images=60)


def setup(**options):
    method = METHODS["inpainting"](models.create("resnet8", stages=(1,), width=2.0), RUN, decoder_width=4, **options)
    x = jax.random.normal(jax.random.key(0), (4, 16, 16, 1))
    return method, x, *method.init(jax.random.key(1), x[:1])


def test_regions_are_connected_shapes_of_the_same_share():
    method, *_ = setup(removed=0.25)
    mask = np.asarray(method.regions(jax.random.key(0), jnp.arange(50), (40, 40)))
    np.testing.assert_allclose(mask.mean(axis=(1, 2)), 0.25, atol=0.01)
    # Of pixels at random three quarters of the neighbors would differ from a removed one.
    borders = np.mean(mask[:, 1:] != mask[:, :-1])
    assert borders < 0.08
    assert len(np.unique(mask.reshape(50, -1), axis=0)) == 50
    np.testing.assert_array_equal(method.regions(jax.random.key(0), jnp.array([7]), (40, 40))[0], mask[7])


def test_what_is_removed_is_not_seen_and_is_all_that_counts():
    method, x, params, state = setup()
    batch, rng = {"views": (x,), "index": jnp.arange(4)}, jax.random.key(2)
    loss, (_, metrics) = method.loss(params, state, batch, rng)
    mask = np.asarray(method.regions(rng, batch["index"], (16, 16)))
    prediction, *_ = method.predict(params, state, x, jnp.asarray(mask), rng, None)
    np.testing.assert_allclose(loss, np.mean((np.asarray(prediction) - np.asarray(x))[mask] ** 2), rtol=1e-4)
    np.testing.assert_allclose(metrics["mean_loss"], np.mean(np.asarray(x)[mask] ** 2), rtol=1e-5)
    other = jnp.where(mask[..., None], 9.0, x)
    np.testing.assert_allclose(
        method.predict(params, state, other, jnp.asarray(mask), rng, None)[0], prediction, atol=1e-4
    )


def test_each_position_is_drawn_from_all_of_its_channel_alone():
    layer = ChannelwiseDense()
    x = jax.random.normal(jax.random.key(0), (1, 2, 3, 4))
    variables = layer.init(jax.random.key(1), x)
    changed = layer.apply(variables, x.at[0, 1, 2, 3].add(1.0)) - layer.apply(variables, x)
    assert np.all(changed[..., 3] != 0) and np.all(changed[..., :3] == 0)


def test_a_share_out_of_range_is_refused():
    with pytest.raises(ValueError, match="removed must be in"):
        setup(removed=1.0)

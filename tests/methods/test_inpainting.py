import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.methods.inpainting import ChannelwiseDense
from tests.methods.drawn import draw

RUN = Schedule(batch_size=4, steps=100, steps_per_epoch=10, num_images=60)


def make(**options):
    return METHODS["inpainting"](models.create("resnet8", stages=(1,)), RUN, decoder_width=4, **options)


def test_regions_are_connected_shapes_of_the_same_share():
    regions = jax.jit(lambda index: make(removed=0.25).regions(jax.random.key(0), index, (40, 40)))
    mask = np.asarray(regions(np.arange(50)))
    np.testing.assert_allclose(mask.mean(axis=(1, 2)), 0.25, atol=0.01)
    # Of pixels at random three quarters of the neighbors would differ from a removed one.
    borders = np.mean(mask[:, 1:] != mask[:, :-1])
    assert borders < 0.08
    assert len(np.unique(mask.reshape(50, -1), axis=0)) == 50
    order = np.random.default_rng(0).permutation(50)
    np.testing.assert_array_equal(regions(order), mask[order])  # an image's is drawn by its index


def test_what_is_removed_is_not_seen_and_is_all_that_counts():
    method, index = make(), np.arange(4)
    x = np.random.default_rng(0).normal(size=(4, 16, 16, 1)).astype(np.float32)

    @jax.jit
    def run(params, state, x, index, rng):
        output = method.loss(params, state, {"views": (x,), "index": index}, rng)
        mask = method.regions(rng, index, (16, 16))
        other = jnp.where(mask[..., None], 9.0, x)
        of_other = method.predict(params, state, other, mask, rng, None)[0]
        return output.loss, output.metrics["mean_loss"], mask, of_other

    loss, mean_loss, mask, of_other = jax.device_get(run(*draw(method, x[:1]), x, index, jax.random.key(2)))
    # What is drawn is the same of an image that is another where it is removed.
    np.testing.assert_allclose(loss, np.mean((of_other - x)[mask] ** 2), rtol=1e-4)
    np.testing.assert_allclose(mean_loss, np.mean(x[mask] ** 2), rtol=1e-5)


def test_each_position_is_drawn_from_all_of_its_channel_alone():
    layer = ChannelwiseDense()
    x = np.random.default_rng(0).normal(size=(1, 2, 3, 4)).astype(np.float32)
    other = x.copy()
    other[0, 1, 2, 3] += 1

    @jax.jit
    def run(x, other):
        variables = layer.init(jax.random.key(1), x)
        return layer.apply(variables, other) - layer.apply(variables, x)

    changed = np.asarray(run(x, other))
    assert np.all(changed[..., 3] != 0) and np.all(changed[..., :3] == 0)


def test_with_a_discriminator_each_player_is_moved_by_its_own_loss():
    share = 0.25
    method, plain = make(adversarial=share, discriminator_width=2), make()
    x = np.random.default_rng(0).normal(size=(4, 16, 16, 1)).astype(np.float32)
    params, state = draw(method, x[:1])
    batch = {"views": (x,), "index": np.arange(4)}

    @jax.jit
    def run(params, state, batch):
        def terms(params):
            output = method.loss(params, state, batch, jax.random.key(2))
            names = ("squared_error", "discriminator_loss", "generator_loss")
            return jnp.stack([output.loss, *(output.metrics[name] for name in names)])

        return terms(params), jax.jacrev(terms)(params), plain.loss(params, state, batch, jax.random.key(2)).loss

    (loss, error, of_discriminator, of_generator), gradients, without = jax.device_get(run(params, state, batch))
    np.testing.assert_allclose(error, without, rtol=1e-4)
    np.testing.assert_allclose(loss, (1 - share) * error + share * of_generator + of_discriminator, rtol=1e-5)
    for name, found in gradients.items():
        for leaf in jax.tree.leaves(found):
            whole, error, discriminator, generator = leaf
            if name == "discriminator":
                np.testing.assert_allclose(whole, discriminator, rtol=1e-4, atol=1e-5)
                assert not np.any(error) and not np.any(generator)
            else:
                expected = (1 - share) * error + share * generator
                np.testing.assert_allclose(whole, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max() + 1e-7)
                assert not np.any(discriminator)
    assert any(np.any(leaf[3]) for leaf in jax.tree.leaves(gradients["backbone"]))


def test_a_share_out_of_range_is_refused():
    with pytest.raises(ValueError, match="removed must be in"):
        make(removed=1.0)
    with pytest.raises(ValueError, match=r"adversarial must be in \[0, 1\)"):
        make(adversarial=1.0)

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models, optim
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.models.dcgan import Discriminator, Generator, max_pool_to

RUN = Schedule(batch_size=8, steps=100, steps_per_epoch=10, num_images=60)


METHOD = METHODS["dcgan"](Discriminator(image_size=16, base_width=4), RUN, latent=5, generator_width=4)
BATCH = {
    "views": (np.random.default_rng(0).uniform(-1, 1, (8, 16, 16, 1)).astype(np.float32),),
    "index": np.arange(8),
}


@functools.cache
def start():
    return jax.jit(METHOD.init)(jax.random.key(1), BATCH["views"][0][:1])


def test_each_player_is_moved_by_its_own_loss_alone():
    @jax.jit
    def gradients(params, state, batch):
        def terms(params):
            output = METHOD.loss(params, state, batch, jax.random.key(2))
            return jnp.stack([output.loss, output.metrics["discriminator_loss"], output.metrics["generator_loss"]])

        return jax.jacrev(terms)(params)

    found = jax.device_get(gradients(*start(), BATCH))
    both, of_discriminator, of_generator = (jax.tree.map(lambda leaf, i=i: leaf[i], found) for i in range(3))
    equal = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-7)
    for name in ("backbone", "head"):
        jax.tree.map(equal, both[name], of_discriminator[name])
        assert not any(np.any(g) for g in jax.tree.leaves(of_generator[name]))
    jax.tree.map(equal, both["generator"], of_generator["generator"])
    assert not any(np.any(g) for g in jax.tree.leaves(of_discriminator["generator"]))
    assert all(np.any(g) for g in jax.tree.leaves(both["generator"]))


def test_both_players_stay_alive():
    tx = optim.adam(lambda _: 2e-3, weight_decay=0.0, b1=0.5)

    @jax.jit
    def train(params, state, batch):
        def step(carry, i):
            params, state, opt = carry

            def loss(params):
                output = METHOD.loss(params, state, batch, jax.random.key(i))
                return output.loss, output

            grads, output = jax.grad(loss, has_aux=True)(params)
            updates, opt = tx.update(grads, opt, params)
            metrics = output.metrics["discriminator_loss"], output.metrics["generator_loss"]
            return (jax.tree.map(jnp.add, params, updates), output.state, opt), metrics

        (params, state, _), metrics = jax.lax.scan(step, (params, state, tx.init(params)), jnp.arange(60))
        return metrics, METHOD.pictures(params, state, batch, jax.random.key(0))["made"]

    (of_discriminator, of_generator), made = jax.device_get(train(*start(), BATCH))
    assert 0.05 < of_discriminator[-1] < 2.0 and 0.05 < of_generator[-1] < 8.0
    assert made.shape == (8, 16, 16, 1) and np.abs(made).max() <= 1.0 and np.std(made, axis=0).max() > 1e-3


def test_features_are_every_layers_pooled_to_4x4():
    model = Discriminator(image_size=28, base_width=3)

    def shapes(x):
        variables = model.init(jax.random.key(1), x)
        return model.apply(variables, x), model.apply(variables, x, pool=False)

    h, whole = jax.eval_shape(shapes, np.zeros((2, 28, 28, 1), np.float32))
    assert h.shape == (2, model.dim) == (2, 16 * (3 + 6))
    assert whole.shape == (2, 7, 7, 6)
    assert models.create("dcgan_discriminator", image_size=32, base_width=64).dim == 16 * (64 + 128 + 256)


def test_max_pool_to_divides_the_map_evenly():
    x = np.arange(49, dtype=np.float32).reshape(1, 7, 7, 1)
    pooled, same = jax.jit(lambda *maps: [max_pool_to(x, 4) for x in maps])(x, x[:, :4, :4])
    np.testing.assert_array_equal(
        np.asarray(pooled)[0, :, :, 0], [[8, 10, 12, 13], [22, 24, 26, 27], [36, 38, 40, 41], [43, 45, 47, 48]]
    )
    np.testing.assert_array_equal(same, x[:, :4, :4])


@pytest.mark.parametrize("side", [16, 28, 32, 64])
def test_generator_gives_the_size(side):
    generator = Generator(side, channels=3, width=2)
    shape = jax.eval_shape(lambda: generator.init_with_output(jax.random.key(0), jnp.zeros((2, 5)))[0]).shape
    assert shape == (2, side, side, 3)


def test_another_backbone_is_refused():
    with pytest.raises(ValueError, match=r"use model\.name=dcgan_discriminator"):
        METHODS["dcgan"](models.create("resnet8"), RUN)

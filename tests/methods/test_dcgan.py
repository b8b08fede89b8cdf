import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models, optim
from ssl_jax.methods import METHODS, Run
from ssl_jax.models.dcgan import Discriminator, Generator, max_pool_to

RUN = Run(batch_size=8, steps=100, steps_per_epoch=10, num_images=60)


def setup():
    method = METHODS["dcgan"](Discriminator(image_size=16, base_width=4), RUN, latent=5, generator_width=4)
    x = jax.random.uniform(jax.random.key(0), (8, 16, 16, 1), minval=-1.0)
    return method, {"views": (x,), "index": jnp.arange(8)}, *method.init(jax.random.key(1), x[:1])


def test_each_player_is_moved_by_its_own_loss_alone():
    method, batch, params, state = setup()

    def term(name, params):
        return method.loss(params, state, batch, jax.random.key(2))[1][1][name]

    both = jax.grad(lambda params: method.loss(params, state, batch, jax.random.key(2))[0])(params)
    of_discriminator = jax.grad(functools.partial(term, "discriminator_loss"))(params)
    of_generator = jax.grad(functools.partial(term, "generator_loss"))(params)
    for name in ("backbone", "head"):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-7), both[name], of_discriminator[name]
        )
        assert not any(np.any(g) for g in jax.tree.leaves(of_generator[name]))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-7),
        both["generator"],
        of_generator["generator"],
    )
    assert not any(np.any(g) for g in jax.tree.leaves(of_discriminator["generator"]))
    assert all(np.any(g) for g in jax.tree.leaves(both["generator"]))


def test_both_players_stay_alive():
    method, batch, params, state = setup()
    tx = optim.adam(lambda _: 2e-3, weight_decay=0.0, b1=0.5)

    @jax.jit
    def step(params, state, opt, rng):
        grads, (state, metrics) = jax.grad(method.loss, has_aux=True)(params, state, batch, rng)
        updates, opt = tx.update(grads, opt, params)
        return jax.tree.map(jnp.add, params, updates), state, opt, metrics

    opt = tx.init(params)
    for i in range(60):
        params, state, opt, metrics = step(params, state, opt, jax.random.key(i))
    assert 0.05 < metrics["discriminator_loss"] < 2.0 and 0.05 < metrics["generator_loss"] < 8.0
    made = method.pictures(params, state, batch, jax.random.key(0))["made"]
    assert made.shape == (8, 16, 16, 1) and np.abs(made).max() <= 1.0 and np.std(made, axis=0).max() > 1e-3


def test_features_are_every_layers_pooled_to_4x4():
    model = Discriminator(image_size=28, base_width=3)
    x = jax.random.normal(jax.random.key(0), (2, 28, 28, 1))
    variables = model.init(jax.random.key(1), x)
    h = model.apply(variables, x)
    assert h.shape == (2, model.dim) == (2, 16 * (3 + 6))
    assert model.apply(variables, x, pool=False).shape == (2, 7, 7, 6)
    assert models.create("dcgan_discriminator", image_size=32, base_width=64).dim == 16 * (64 + 128 + 256)


def test_max_pool_to_divides_the_map_evenly():
    x = jnp.arange(49.0).reshape(1, 7, 7, 1)
    np.testing.assert_array_equal(
        max_pool_to(x, 4)[0, :, :, 0], [[8, 10, 12, 13], [22, 24, 26, 27], [36, 38, 40, 41], [43, 45, 47, 48]]
    )
    np.testing.assert_array_equal(max_pool_to(x[:, :4, :4], 4), x[:, :4, :4])


@pytest.mark.parametrize("side", [16, 28, 32, 64])
def test_generator_gives_the_size(side):
    generator = Generator(side, channels=3, width=2)
    shape = jax.eval_shape(lambda: generator.init_with_output(jax.random.key(0), jnp.zeros((2, 5)))[0]).shape
    assert shape == (2, side, side, 3)


def test_another_backbone_is_refused():
    with pytest.raises(ValueError, match=r"use model\.name=dcgan_discriminator"):
        METHODS["dcgan"](models.create("resnet8"), RUN)

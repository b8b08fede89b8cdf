import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from ssl_jax import models

IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(16, 12, 10, 1)), jnp.float32)


def test_training_gives_the_same_on_one_device_and_eight():
    module = models.create("resnet8")
    variables = jax.jit(module.init)(jax.random.key(0), IMAGES)

    def outcome(variables, images, axis_name=None):
        def loss(params):
            h, updated = module.apply(
                {**variables, "params": params}, images, train=True, axis_name=axis_name, mutable=["batch_stats"]
            )
            value = jnp.mean(jnp.sin(h))
            return (value if axis_name is None else lax.pmean(value, axis_name)), updated

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    expected = jax.jit(outcome)(variables, IMAGES)
    mesh = Mesh(np.asarray(jax.devices()[:8]), ("data",))
    found = jax.jit(
        jax.shard_map(
            lambda variables, images: outcome(variables, images, "data"),
            mesh=mesh,
            in_specs=(P(), P("data")),
            out_specs=P(),
            check_vma=True,
        )
    )(variables, IMAGES)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


@pytest.mark.parametrize("name, last", [("resnet18", "bn2"), ("resnet50", "bn3")])
def test_zero_init_residual_is_of_the_last_scale_of_each_block(name, last):
    module = models.create(name, stages=(1, 1), zero_init_residual=True, width=1 / 16)
    params = jax.jit(module.init)(jax.random.key(0), IMAGES)["params"]
    for path, leaf in jax.tree.leaves_with_path(params):
        keys = [key.key for key in path]
        if keys[-1] == "scale":
            np.testing.assert_array_equal(leaf, 0.0 if keys[-2] == last else 1.0)


@pytest.mark.parametrize("stem, side", [("imagenet", 8), ("small", 32), ("strided", 16)])
def test_stems_keep_their_share_of_the_resolution(stem, side):
    module = models.create("resnet18", stem=stem)
    images = jnp.zeros((1, 32, 32, 1))
    state = jax.eval_shape(functools.partial(module.init, capture_intermediates=True), jax.random.key(0), images)
    assert state["intermediates"]["layer1_0"]["__call__"][0].shape[1:3] == (side, side)


def test_recomputed_blocks_are_the_same():
    images = jnp.asarray(np.random.default_rng(0).normal(size=(8, 16, 16, 3)), jnp.float32)
    plain = models.create("resnet8")
    variables = jax.jit(plain.init)(jax.random.key(0), images)

    def step(module):
        def loss(params):
            given = {**variables, "params": params}
            h, changed = module.apply(given, images, train=True, mutable=["batch_stats"])
            return jnp.sum(h**2), changed

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])

    jax.tree.map(
        lambda got, expected: np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4),
        step(models.create("resnet8", remat=True)),
        step(plain),
    )

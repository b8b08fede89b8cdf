import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import losses, models
from ssl_jax.methods import METHODS, Schedule

X1, X2 = np.random.default_rng(0).normal(size=(2, 8, 8, 8, 1)).astype(np.float32)
RUN = Schedule(batch_size=8, steps=100, steps_per_epoch=10, num_images=1000)


def make(**options):
    options = {"projector": (24, 20, 6), **options}
    return METHODS["hypersphere"](models.create("resnet8", stages=(1,)), RUN, **options)


@functools.cache
def start():
    return jax.device_get(make().init(jax.random.key(1), X1[:1]))


def projection(method, params, state, x):
    for name, module in method.networks.items():
        variables = {"params": params[name], "batch_stats": state["batch_stats"][name]}
        x, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
    return x


def unit(z):
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def uniformity(z, t):
    return np.log(np.mean([np.exp(-t * np.sum((a - b) ** 2)) for a, b in itertools.combinations(z, 2)]))


def test_loss_is_alignment_and_uniformity_of_views_in_one_batch():
    cases = [{}, {"uniformity": 0.25, "t": 3.0, "alpha": 1.0}]

    @jax.jit
    def run(params, state, views):
        steps = [make(**options).loss(params, state, {"views": views}, jax.random.key(2)) for options in cases]
        return steps, projection(make(), params, state, jnp.concatenate(views))

    steps, z = jax.device_get(run(*start(), (X1, X2)))
    z1, z2 = np.split(unit(z.astype(np.float64)), 2)
    for options, output in zip(cases, steps, strict=True):
        weight, t, alpha = (options.get(name, default) for name, default in (("uniformity", 1), ("t", 2), ("alpha", 2)))
        expected = np.mean(np.linalg.norm(z1 - z2, axis=1) ** alpha)
        expected += weight * (uniformity(z1, t) + uniformity(z2, t)) / 2
        np.testing.assert_allclose(output.loss, expected, rtol=1e-4)
        np.testing.assert_allclose(output.embeddings, z.reshape(2, 8, 6), rtol=1e-4, atol=1e-6)


def test_with_a_queue_keys_are_a_teachers_and_past_ones_are_what_is_spread_from():
    method = make(projector=(12, 6), queue_size=16, uniformity=0.5, decay=0.75)
    init = jax.jit(method.init)
    (params, state), (other, _) = (jax.device_get(init(jax.random.key(seed), X1)) for seed in (1, 5))
    state["teacher"]["params"] = other

    @jax.jit
    def run(params, state, views):
        output = method.loss(params, state, {"views": views}, jax.random.key(2))
        online = projection(method, params, state, views[0])
        keys = projection(method, state["teacher"]["params"], state, views[1])
        moved = method.update(params, output.state, jnp.array(0))
        return output, moved["teacher"]["params"], online, keys

    output, moved, online, keys = jax.device_get(run(params, state, (X1, X2)))
    q, k = (unit(z.astype(np.float64)) for z in (online, keys))
    queue = np.asarray(state["queue"]["rows"], np.float64)
    pairs = [*itertools.combinations(q, 2), *itertools.product(q, queue)]
    expected = np.mean(np.sum((q - k) ** 2, axis=1))
    expected += 0.5 * np.log(np.mean([np.exp(-2.0 * np.sum((a - b) ** 2)) for a, b in pairs]))
    np.testing.assert_allclose(output.loss, expected, rtol=1e-4)
    np.testing.assert_allclose(output.embeddings, [online, keys], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(output.state["queue"]["rows"], np.concatenate([k, queue[8:]]), rtol=1e-3, atol=1e-5)
    moved, before, student = (p["projector"]["Dense_0"] for p in (moved, other, params))
    expected = 0.75 * before["kernel"] + 0.25 * student["kernel"]
    np.testing.assert_allclose(moved["kernel"], expected, rtol=1e-4, atol=1e-6)
    assert set(moved) == {"kernel", "bias"}  # as MoCo v2's head


def test_projector_is_the_authors_fully_connected_layers():
    params, _ = start()
    shapes = jax.tree.map(jnp.shape, params["projector"])
    assert set(shapes) == {"Dense_0", "BatchNorm_0", "Dense_1", "BatchNorm_1", "Dense_2"}
    assert shapes["Dense_1"] == {"kernel": (24, 20)} and shapes["Dense_2"] == {"kernel": (20, 6), "bias": (6,)}


def test_chance_level_is_the_loss_of_equal_embeddings():
    z = np.ones((8, 6), np.float32)
    np.testing.assert_allclose(make().chance_level, losses.hypersphere(z, z, t=2.0), atol=1e-6)


@pytest.mark.parametrize("name", ["uniformity", "t", "alpha"])
def test_refuses_numbers_that_are_not_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be above 0, got 0.0"):
        make(**{name: 0.0})

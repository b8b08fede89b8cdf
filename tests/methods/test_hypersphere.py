import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import losses, models
from ssl_jax.methods import METHODS, Run

RUN = Run(batch_size=8, steps=100, steps_per_epoch=10, num_images=1000)


def make(**options):
    options = {"projector": (24, 20, 6), **options}
    return METHODS["hypersphere"](models.create("resnet8", stages=(1,)), RUN, **options)


def start(method):
    x1, x2 = jax.random.normal(jax.random.key(0), (2, 8, 16, 16, 1))
    return *method.init(jax.random.key(1), x1[:1]), (x1, x2)


def projection(method, params, state, x):
    for name, module in method.networks.items():
        variables = {"params": params[name], "batch_stats": state["batch_stats"][name]}
        x, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
    return np.asarray(x, np.float64)


def uniformity(z, t):
    return np.log(np.mean([np.exp(-t * np.sum((a - b) ** 2)) for a, b in itertools.combinations(z, 2)]))


@pytest.mark.parametrize("options", [{}, {"uniformity": 0.25, "t": 3.0, "alpha": 1.0}])
def test_loss_is_alignment_and_uniformity_of_views_in_one_batch(options):
    method = make(**options)
    params, state, (x1, x2) = start(method)
    z = projection(method, params, state, jnp.concatenate([x1, x2]))
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    z1, z2 = unit[:8], unit[8:]
    weight, t, alpha = (options.get(name, default) for name, default in (("uniformity", 1), ("t", 2), ("alpha", 2)))
    expected = np.mean(np.linalg.norm(z1 - z2, axis=1) ** alpha)
    expected += weight * (uniformity(z1, t) + uniformity(z2, t)) / 2
    loss, (_, metrics) = method.loss(params, state, {"views": (x1, x2)}, jax.random.key(2))
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    np.testing.assert_allclose(metrics["embeddings"], z.reshape(2, 8, 6), rtol=1e-4, atol=1e-6)


def test_with_a_queue_keys_are_a_teachers_and_past_ones_are_what_is_spread_from():
    method = make(projector=(12, 6), queue_size=16, uniformity=0.5, decay=0.75)
    params, state, (x1, x2) = start(method)
    state["teacher"]["params"] = method.init(jax.random.key(5), x1)[0]
    online = projection(method, params, state, x1)
    keys = projection(method, state["teacher"]["params"], state, x2)
    q, k = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (online, keys))
    queue = np.asarray(state["queue"]["rows"], np.float64)
    loss, (new, metrics) = method.loss(params, state, {"views": (x1, x2)}, jax.random.key(2))
    pairs = [*itertools.combinations(q, 2), *itertools.product(q, queue)]
    expected = np.mean(np.sum((q - k) ** 2, axis=1))
    expected += 0.5 * np.log(np.mean([np.exp(-2.0 * np.sum((a - b) ** 2)) for a, b in pairs]))
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    np.testing.assert_allclose(metrics["embeddings"], [online, keys], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(new["queue"]["rows"], np.concatenate([k, queue[8:]]), rtol=1e-3, atol=1e-5)
    moved = method.update(params, new, 0)["teacher"]["params"]["projector"]["Dense_0"]
    before = state["teacher"]["params"]["projector"]["Dense_0"]
    np.testing.assert_allclose(
        moved["kernel"], 0.75 * before["kernel"] + 0.25 * params["projector"]["Dense_0"]["kernel"], rtol=1e-4, atol=1e-6
    )
    assert set(moved) == {"kernel", "bias"}  # as MoCo v2's head


def test_projector_is_the_authors_fully_connected_layers():
    params, _, _ = start(make())
    shapes = jax.tree.map(jnp.shape, params["projector"])
    assert set(shapes) == {"Dense_0", "BatchNorm_0", "Dense_1", "BatchNorm_1", "Dense_2"}
    assert shapes["Dense_1"] == {"kernel": (24, 20)} and shapes["Dense_2"] == {"kernel": (20, 6), "bias": (6,)}


def test_chance_level_is_the_loss_of_equal_embeddings():
    z = jnp.ones((8, 6))
    np.testing.assert_allclose(make().chance_level, losses.hypersphere(z, z, t=2.0), atol=1e-6)


@pytest.mark.parametrize("name", ["uniformity", "t", "alpha"])
def test_refuses_numbers_that_are_not_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be above 0, got 0.0"):
        make(**{name: 0.0})

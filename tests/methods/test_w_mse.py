import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Run


def make(batch_size=12, **options):
    run = Run(batch_size=batch_size, steps=100, steps_per_epoch=10, num_images=1000)
    options = {"projector": (16, 3), "whiten_size": 6} | options
    return METHODS["w_mse"](models.create("resnet8", stages=(1,)), run, **options)


def whitened(z):
    """Unit vectors of z [rows, dim] after it was whitened by its Cholesky factor, in float64."""
    z = np.float64(z)
    z = np.linalg.solve(np.linalg.cholesky(np.cov(z.T)), (z - z.mean(0)).T).T
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def test_loss_whitens_random_sub_batches_the_same_of_every_view():
    method = make(num_views=3, whiten_iterations=2)
    z = jax.random.normal(jax.random.key(0), (3, 12, 3)) @ jax.random.normal(jax.random.key(1), (3, 3)) + 2.0
    loss = method.whitened_distance(jax.random.key(2), z)
    distances, drawn = [], []
    for key in jax.random.split(jax.random.key(2), 2):
        order = np.asarray(jax.random.permutation(key, 12))
        drawn.append(order)
        for rows in (order[:6], order[6:]):
            w = [whitened(view[rows]) for view in np.asarray(z)]
            distances += [np.sum((a - b) ** 2, axis=1) for a, b in itertools.combinations(w, 2)]
    assert not np.array_equal(*drawn)
    np.testing.assert_allclose(loss, np.mean(distances), rtol=1e-4)
    assert abs(float(method.whitened_distance(jax.random.key(3), z)) - loss) > 1e-3  # other sub-batches


def test_each_view_passes_the_backbone_alone_and_the_projector_with_the_others():
    method = make()
    x1, x2 = jax.random.normal(jax.random.key(0), (2, 12, 16, 16, 1))
    params, state = method.init(jax.random.key(1), x1[:1])
    rng = jax.random.key(2)
    loss, (new_state, metrics) = method.loss(params, state, {"views": (x1, x2)}, rng)

    def apply(name, x):
        variables = {"params": params[name], "batch_stats": state["batch_stats"][name]}
        return method.networks[name].apply(variables, x, train=True, mutable=["batch_stats"])[0]

    z = apply("projector", jnp.concatenate([apply("backbone", x) for x in (x1, x2)])).reshape(2, 12, 3)
    np.testing.assert_allclose(metrics["embeddings"], z, atol=1e-5)
    np.testing.assert_allclose(loss, method.whitened_distance(rng, z), rtol=1e-3)
    changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), state, new_state)
    assert all(jax.tree.leaves(changed))


def test_head_is_the_authors():
    params, _ = make().init(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
    shapes = jax.tree.map(jnp.shape, params["projector"])
    assert shapes == {
        "Dense_0": {"kernel": (16, 16), "bias": (16,)},
        "BatchNorm_0": {"scale": (16,), "bias": (16,)},
        "Dense_1": {"kernel": (16, 3), "bias": (3,)},
    }


def test_chance_level_is_the_loss_of_independent_views():
    method = make(batch_size=1200, whiten_size=600)
    z = jax.random.normal(jax.random.key(0), (2, 1200, 3))
    np.testing.assert_allclose(method.whitened_distance(jax.random.key(1), z), method.chance_level, atol=0.15)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"whiten_size": 4}, "whiten_size=4 rows are too few to whiten 3 dimensions; use 6 or more"),
        ({"batch_size": 20}, "batch_size=20 is no multiple of whiten_size=6; use batch_size 18"),
        ({"batch_size": 4}, "use batch_size 6"),
        ({"num_views": 1}, "num_views must be at least 2, got 1"),
        ({"whiten_iterations": 0}, "whiten_iterations must be above 0"),
        ({"eps": -0.1}, "eps must be in 0..1"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)

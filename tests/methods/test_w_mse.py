import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule
from tests.methods.drawn import draw


def make(batch_size=12, **options):
    run = Schedule(batch_size=batch_size, steps=100, steps_per_epoch=10, num_images=1000)
    options = {"projector": (16, 3), "whiten_size": 6} | options
    return METHODS["w_mse"](models.create("resnet8", stages=(1,)), run, **options)


def whitened(z):
    """Unit vectors of z [rows, dim] after it was whitened by its Cholesky factor, in float64."""
    z = np.float64(z)
    z = np.linalg.solve(np.linalg.cholesky(np.cov(z.T)), (z - z.mean(0)).T).T
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def test_loss_whitens_random_sub_batches_the_same_of_every_view():
    method = make(num_views=3, whiten_iterations=2)
    rng = np.random.default_rng(0)
    mixing = np.array([[1.0, 0.5, 0.0], [0.0, 1.0, 0.5], [0.3, 0.0, 1.0]])
    z = (rng.normal(size=(3, 12, 3)) @ mixing + 2).astype(np.float32)

    @jax.jit
    def run(key, z):
        orders = [jax.random.permutation(key, 12) for key in jax.random.split(key, 2)]
        return method.whitened_distance(key, z), orders

    loss, drawn = jax.device_get(run(jax.random.key(2), z))
    distances = []
    for order in drawn:
        for rows in (order[:6], order[6:]):
            w = [whitened(view[rows]) for view in z]
            distances += [np.sum((a - b) ** 2, axis=1) for a, b in itertools.combinations(w, 2)]
    assert not np.array_equal(*drawn)
    np.testing.assert_allclose(loss, np.mean(distances), rtol=1e-4)
    assert abs(float(run(jax.random.key(3), z)[0]) - loss) > 1e-3  # other sub-batches


def test_each_view_passes_the_backbone_alone_and_the_projector_with_the_others():
    method = make()

    @jax.jit
    def run(params, state, views):
        rng = jax.random.key(2)
        output = method.loss(params, state, {"views": tuple(views)}, rng)

        def apply(name, x):
            variables = {"params": params[name], "batch_stats": state["batch_stats"][name]}
            return method.networks[name].apply(variables, x, train=True, mutable=["batch_stats"])[0]

        z = apply("projector", jax.vmap(lambda x: apply("backbone", x))(views).reshape(24, -1)).reshape(2, 12, 3)
        return output, z, method.whitened_distance(rng, z)

    views = np.random.default_rng(0).normal(size=(2, 12, 12, 12, 1)).astype(np.float32)
    params, state = draw(method, views[0, :1])
    output, z, expected = jax.device_get(run(params, state, views))
    np.testing.assert_allclose(output.embeddings, z, atol=1e-5)
    np.testing.assert_allclose(output.loss, expected, rtol=1e-3)
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), state, output.state)
    assert all(jax.tree.leaves(changed))


def test_head_is_the_authors():
    params, _ = jax.eval_shape(make().init, jax.random.key(0), np.zeros((1, 16, 16, 1), np.float32))
    shapes = jax.tree.map(jnp.shape, params["projector"])
    assert shapes == {
        "Dense_0": {"kernel": (16, 16), "bias": (16,)},
        "BatchNorm_0": {"scale": (16,), "bias": (16,)},
        "Dense_1": {"kernel": (16, 3), "bias": (3,)},
    }


def test_chance_level_is_the_loss_of_independent_views():
    method = make(batch_size=1200, whiten_size=600)
    z = np.random.default_rng(0).normal(size=(2, 1200, 3)).astype(np.float32)
    loss = jax.jit(method.whitened_distance)(jax.random.key(1), z)
    np.testing.assert_allclose(loss, method.chance_level, atol=0.15)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"whiten_size": 4}, "whiten_size=4 rows are too few to whiten 3 dimensions; use 6 or more"),
        ({"batch_size": 20}, "batch_size=20 is not a multiple of whiten_size=6; use batch_size 18"),
        ({"batch_size": 4}, "use batch_size 6"),
        ({"num_views": 1}, "num_views must be at least 2, got 1"),
        ({"whiten_iterations": 0}, "whiten_iterations must be at least 1, got 0"),
        ({"eps": -0.1}, "eps must be in 0..1"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)

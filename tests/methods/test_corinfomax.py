import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule

RUN = Schedule(batch_size=8, steps=100, steps_per_epoch=10, num_images=1000)
VIEWS = tuple(np.random.default_rng(0).normal(size=(2, 8, 8, 8, 1)).astype(np.float32))


def make(**options):
    options = {"projector": (12, 6), "attraction": 3.0, "memory": 0.3, **options}
    return METHODS["corinfomax"](models.create("resnet8", stages=(1,)), RUN, **options)


@functools.cache
def steps():
    """The outputs of two steps with the same params, and the projections of both views as unit vectors."""
    method = make()
    params, state = method.init(jax.random.key(1), jnp.asarray(VIEWS[0]))

    def project(x):
        for name, module in method.networks.items():
            variables = {"params": params[name], "batch_stats": state["batch_stats"][name]}
            x, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
        return x

    @jax.jit
    def run(state, views):
        first = method.loss(params, state, {"views": views}, jax.random.key(2))
        second = method.loss(params, first.state, {"views": views[::-1]}, jax.random.key(2))
        return first, second, [project(x) for x in views]

    first, second, z = jax.device_get(run(state, VIEWS))
    z = np.asarray(z, np.float64)
    return first, second, z / np.linalg.norm(z, axis=-1, keepdims=True)


def test_the_second_step_goes_on_from_the_means_and_covariances_of_the_first():
    *outputs, z = steps()
    mean, covariance = np.zeros((2, 6)), np.stack([np.eye(6)] * 2)
    for output, pair in zip(outputs, (z, z[::-1]), strict=True):
        loss = 3.0 * np.mean((pair[0] - pair[1]) ** 2)
        for view, rows in enumerate(pair):
            mean[view] = 0.3 * mean[view] + 0.7 * rows.mean(0)
            centered = rows - mean[view]
            covariance[view] = 0.3 * covariance[view] + 0.7 * centered.T @ centered / 8
            loss -= np.linalg.slogdet(covariance[view])[1] / 6
        np.testing.assert_allclose(output.loss, loss, rtol=1e-4)
        np.testing.assert_allclose(output.state["mean"], mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(output.state["covariance"], covariance, rtol=1e-4, atol=1e-5)
        assert output.embeddings.shape == (2, 8, 6)


def test_the_projector_is_the_authors():
    params, _ = make().init(jax.random.key(1), jnp.asarray(VIEWS[0]))
    assert jax.tree.map(np.shape, params["projector"]) == {
        "Dense_0": {"kernel": (16, 12), "bias": (12,)},
        "BatchNorm_0": {"scale": (12,), "bias": (12,)},
        "Dense_1": {"kernel": (12, 6)},
    }


@pytest.mark.parametrize(
    "options, message",
    [
        ({"attraction": 0.0}, "attraction must be above 0, got 0.0"),
        ({"memory": 1.0}, "memory must be in .0, 1., got 1.0"),
        ({"eps": 0.0}, "eps must be above 0, got 0.0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)

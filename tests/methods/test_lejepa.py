import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Run


def make(**options):
    run = Run(batch_size=8, steps=100, steps_per_epoch=10, num_images=1000)
    options = {"projector": (16, 16, 4), "num_global": 2, "num_local": 1, "directions": 32} | options
    return METHODS["lejepa"](models.create("resnet8", stages=(1,)), run, **options)


def run_loss(method, rng):
    images = jax.random.normal(jax.random.key(0), (2, 8, 16, 16, 1))
    small = jax.random.normal(jax.random.key(1), (1, 8, 8, 8, 1))
    params, state = method.init(jax.random.key(2), images[0])
    return method.loss(params, state, {"views": (*images, *small)}, rng)


def epps_pulley(u):
    """The statistic of projections u [batch, directions], by the trapezoidal rule over all of [-3, 3], in float64."""
    t = np.linspace(-3.0, 3.0, 33)
    distance = np.abs(np.mean(np.exp(1j * t * np.float64(u)[..., None]), axis=0) - np.exp(-(t**2) / 2)) ** 2
    return len(u) * np.trapezoid(distance * np.exp(-(t**2) / 2), t)


def test_loss_is_invariance_to_the_mean_of_the_global_views_and_sigreg_of_each_view():
    method = make(weight=0.3)
    rng = jax.random.key(3)
    loss, (_, metrics) = run_loss(method, rng)
    z = np.asarray(metrics["embeddings"], np.float64)
    assert z.shape == (3, 8, 4)
    invariance = np.mean((z - (z[0] + z[1]) / 2) ** 2)
    directions = np.asarray(jax.random.normal(jax.random.split(rng)[1], (4, 32)))
    directions = directions / np.linalg.norm(directions, axis=0)
    sigreg = np.mean([epps_pulley(view @ directions) for view in z])
    np.testing.assert_allclose(metrics["invariance"], invariance, rtol=1e-4)
    np.testing.assert_allclose(metrics["sigreg"], sigreg, rtol=1e-4)
    np.testing.assert_allclose(loss, 0.7 * invariance + 0.3 * sigreg, rtol=1e-4)


def test_directions_are_new_in_each_step_and_the_views_are_not():
    _, (_, first) = run_loss(make(), jax.random.key(3))
    _, (_, second) = run_loss(make(), jax.random.key(4))
    np.testing.assert_array_equal(first["embeddings"], second["embeddings"])
    assert abs(float(first["sigreg"] - second["sigreg"])) > 1e-3


@pytest.mark.slow
def test_gradient_flows_through_the_mean_of_the_global_views():
    """Moving all embeddings alike changes no distance; were the mean constant, its gradient would say otherwise."""
    method = make(num_global=1, num_local=1, weight=0.0)
    views = tuple(
        jax.random.normal(jax.random.key(0), (2, 8, 16, 16, 1)) * jnp.array([1.0, 2.0]).reshape(2, 1, 1, 1, 1)
    )
    params, state = method.init(jax.random.key(2), views[0])
    grads = jax.grad(lambda p: method.loss(p, state, {"views": views}, jax.random.key(3))[0])(params)
    last = grads["projector"]["Dense_2"]
    np.testing.assert_allclose(last["bias"], np.zeros(4), atol=1e-6)
    assert np.abs(last["kernel"]).max() > 1e-3


def test_views_and_head():
    method = make(num_global=2, num_local=3)
    assert method.views == ("global", "global", "local", "local", "local")
    params, _ = method.init(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
    shapes = jax.tree.map(jnp.shape, params["projector"])
    assert shapes["Dense_0"] == {"kernel": (16, 16), "bias": (16,)}
    assert shapes["Dense_2"] == {"kernel": (16, 4), "bias": (4,)}
    assert "BatchNorm_1" in shapes and "BatchNorm_2" not in shapes


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_global": 1, "num_local": 0}, "num_global=1 and num_local=0 views are too few"),
        ({"num_global": 0}, "num_global must be above 0"),
        ({"weight": 1.5}, "weight must be in 0..1, got 1.5"),
        ({"directions": 0}, "directions must be above 0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule
from tests.methods import drawn

RNG = np.random.default_rng(0)
VIEWS = tuple(RNG.normal(size=(8, size, size, 1)).astype(np.float32) for size in (12, 12, 8))


def make(**options):
    run = Schedule(batch_size=8, steps=100, steps_per_epoch=10, num_images=1000)
    options = {"projector": (16, 16, 4), "num_global": 2, "num_local": 1, "directions": 32} | options
    return METHODS["lejepa"](models.create("resnet8", stages=(1,)), run, **options)


@functools.cache
def steps():
    """(directions, output, the gradient of all but sigreg for the last layer) of two keys: the first counts."""
    method = make(weight=0.3)
    params, state = drawn.draw(method, VIEWS[0])

    @jax.jit
    def run(last, params, state, views, rng):
        def loss(last):
            moved = {**params, "projector": {**params["projector"], "Dense_2": last}}
            output = method.loss(moved, state, {"views": views}, rng)
            return output.loss - 0.3 * output.metrics["sigreg"], output

        (_, output), gradient = jax.value_and_grad(loss, has_aux=True)(last)
        return jax.random.normal(jax.random.split(rng)[1], (4, 32)), output, gradient

    args = params["projector"]["Dense_2"], params, state, VIEWS
    return [jax.device_get(run(*args, jax.random.key(seed))) for seed in (3, 4)]


def epps_pulley(u):
    """The statistic of projections u [batch, directions], by the trapezoidal rule over all of [-3, 3], in float64."""
    t = np.linspace(-3.0, 3.0, 33)
    distance = np.abs(np.mean(np.exp(1j * t * np.float64(u)[..., None]), axis=0) - np.exp(-(t**2) / 2)) ** 2
    return len(u) * np.trapezoid(distance * np.exp(-(t**2) / 2), t)


def test_loss_is_invariance_to_the_mean_of_the_global_views_and_sigreg_of_each_view():
    directions, output, _ = steps()[0]
    z = output.embeddings.astype(np.float64)
    assert z.shape == (3, 8, 4)
    invariance = np.mean((z - (z[0] + z[1]) / 2) ** 2)
    directions = directions / np.linalg.norm(directions, axis=0)
    sigreg = np.mean([epps_pulley(view @ directions) for view in z])
    np.testing.assert_allclose(output.metrics["invariance"], invariance, rtol=1e-4)
    np.testing.assert_allclose(output.metrics["sigreg"], sigreg, rtol=1e-4)
    np.testing.assert_allclose(output.loss, 0.7 * invariance + 0.3 * sigreg, rtol=1e-4)


def test_directions_are_new_in_each_step_and_the_views_are_not():
    (_, first, _), (_, second, _) = steps()
    np.testing.assert_array_equal(first.embeddings, second.embeddings)
    assert abs(first.metrics["sigreg"] - second.metrics["sigreg"]) > 1e-3


def test_gradient_flows_through_the_mean_of_the_global_views():
    """Moving all embeddings alike changes no distance; were the mean constant, its gradient would say otherwise."""
    *_, last = steps()[0]
    np.testing.assert_allclose(last["bias"], np.zeros(4), atol=1e-6)
    assert np.abs(last["kernel"]).max() > 1e-3


def test_views_and_head():
    method = make(num_global=2, num_local=3)
    assert method.views == ("global", "global", "local", "local", "local")
    params, _ = jax.eval_shape(method.init, jax.random.key(0), VIEWS[0])
    shapes = jax.tree.map(jnp.shape, params["projector"])
    assert shapes["Dense_0"] == {"kernel": (16, 16), "bias": (16,)}
    assert shapes["Dense_2"] == {"kernel": (16, 4), "bias": (4,)}
    assert "BatchNorm_1" in shapes and "BatchNorm_2" not in shapes


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_global": 1, "num_local": 0}, "num_global=1 and num_local=0 views are too few"),
        ({"num_global": 0}, "num_global must be at least 1, got 0"),
        ({"weight": 1.5}, "weight must be in 0..1, got 1.5"),
        ({"directions": 0}, "directions must be at least 1, got 0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)

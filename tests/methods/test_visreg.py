import jax
import numpy as np
import pytest

from ssl_jax import losses, models
from ssl_jax.methods import METHODS, Schedule
from tests.methods import drawn

RNG = np.random.default_rng(0)
VIEWS = tuple(RNG.normal(size=(8, size, size, 1)).astype(np.float32) for size in (12, 12, 8))


def make(**options):
    run = Schedule(batch_size=8, steps=100, steps_per_epoch=10, num_images=1000)
    options = {"projector": (16, 16, 4), "num_global": 2, "num_local": 1, "directions": 32} | options
    return METHODS["visreg"](models.create("resnet8", stages=(1,)), run, **options)


def test_loss_is_invariance_to_the_mean_of_the_global_views_and_visreg_of_all_views():
    weights = dict(scale_weight=0.5, shape_weight=2.0, center_weight=3.0)
    method = make(weight=0.3, **weights)
    params, state = drawn.draw(method, VIEWS[0])

    @jax.jit
    def run(params, state, views, rng):
        return method.loss(params, state, {"views": views}, rng), jax.random.normal(jax.random.split(rng)[1], (4, 32))

    output, directions = jax.device_get(run(params, state, VIEWS, jax.random.key(3)))
    z = output.embeddings
    invariance = np.mean((z - (z[0] + z[1]) / 2) ** 2)
    regularization = losses.visreg(z, directions, scale=0.5, shape=2.0, center=3.0)
    np.testing.assert_allclose(output.metrics["invariance"], invariance, rtol=1e-4)
    np.testing.assert_allclose(output.metrics["visreg"], regularization, rtol=1e-4)
    np.testing.assert_allclose(output.loss, 0.7 * invariance + 0.3 * regularization, rtol=1e-4)


def test_the_projector_has_gelus():
    assert make().networks["projector"].activation == "gelu"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"weight": 1.5}, "weight must be in"),
        ({"shape_weight": -1.0}, "shape_weight must be at least 0, got -1.0"),
        ({"num_global": 1, "num_local": 0}, "use two or more in all"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)

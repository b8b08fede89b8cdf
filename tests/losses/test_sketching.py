import functools
from statistics import NormalDist

import numpy as np
import pytest

from ssl_jax import losses
from tests.losses import checks

WEIGHTS = dict(scale=0.5, shape=2.0, center=3.0)
visreg = functools.partial(losses.visreg, **WEIGHTS)


def draw(batch=8, directions=16):
    views = np.stack(checks.draw(batch, 3, count=2, scale=0.7)) + np.float32(0.2)
    return views, np.random.default_rng(5).normal(size=(3, directions)).astype(np.float32)


def reference(views, directions, deviations=None):
    """deviations: those of the shape's term, which have no gradient there."""
    _, batch, _ = views.shape
    quantiles = [NormalDist().inv_cdf(i / (batch + 1)) for i in range(1, batch + 1)]
    scale, shape, center = [], [], []
    for number, z in enumerate(views):
        mean, s = z.mean(0), z.std(0)
        scale.append((s - 1) ** 2)
        center.append(mean**2)
        standard = (z - mean) / (s if deviations is None else deviations[number])
        for direction in directions.T:
            u = np.sort(standard @ direction / np.linalg.norm(direction))
            shape.append((u - quantiles) ** 2)
    return 0.5 * np.mean(scale) + 2.0 * np.mean(shape) + 3.0 * np.mean(center)


def test_visreg_is_the_papers_formula_with_a_scale_that_the_shape_does_not_see():
    views, directions = draw()
    fixed = views.astype(np.float64).std(1)
    checks.equals_reference(
        visreg, functools.partial(reference, deviations=fixed), views, directions, argnums=(0,), gradient_atol=1e-4
    )


@pytest.mark.parametrize("directions", [16, 5])  # which eight devices divide among them, and which they do not
def test_visreg_over_devices_is_that_of_the_whole_batch(directions):
    checks.same_on_devices(
        visreg, *draw(directions=directions), split=[True, False], axes=[1, 0], argnums=(0,), devices=(1, 2, 8)
    )


def test_visreg_is_finite():
    checks.finite_everywhere(visreg, *draw(), scaled=(0,), axes=[1, 0])


def test_visreg_of_bfloat16_is_computed_in_float32():
    checks.computed_in_float32((visreg, draw(), (0,)))


def test_visreg_is_small_for_normal_embeddings_and_has_a_gradient_near_collapse():
    rng = np.random.default_rng(0)
    normal, directions = rng.normal(size=(1, 4096, 3)).astype(np.float32), rng.normal(size=(3, 16)).astype(np.float32)
    assert losses.visreg(normal, directions) < 0.01
    assert losses.visreg(np.sign(normal), directions) > 0.1
    _, gradient = checks.value_and_grad(losses.visreg, 1e-4 * normal, directions)
    assert np.linalg.norm(gradient) > 1e-3


@pytest.mark.parametrize(
    "shapes, message",
    [(((2, 4, 3), (2, 5)), "views must be"), (((4, 3), (3, 5)), "views must be"), (((2, 1, 3), (3, 5)), "two")],
)
@pytest.mark.usefixtures("unchecked")
def test_visreg_refuses_other_shapes(shapes, message):
    with pytest.raises(ValueError, match=message):
        losses.visreg(*map(np.ones, shapes))

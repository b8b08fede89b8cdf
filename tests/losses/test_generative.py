import math

import numpy as np
import pytest
from scipy import stats

from ssl_jax import losses
from tests.losses import checks


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_squared_error():
    checks.equals_reference(
        losses.squared_error, lambda p, t: np.mean((p - t) ** 2), draw(8, 3, 2), draw(8, 3, 2, seed=1)
    )
    checks.same_on_devices(losses.squared_error, draw(8, 3, 2), draw(8, 3, 2, seed=1))


def bound(prediction, target, mean, log_variance):
    """From scipy's densities, without their constant; the divergence by its closed form."""
    pixels = target[0].size
    likelihood = sum(
        stats.norm.logpdf(t.ravel(), p.ravel(), math.sqrt(0.3)).sum() for p, t in zip(prediction, target, strict=True)
    )
    constant = -0.5 * pixels * math.log(2 * math.pi * 0.3)
    divergence = 0.0
    for m, v in zip(mean, np.exp(log_variance), strict=True):
        divergence += sum(0.5 * (a * a + b - 1 - math.log(b)) for a, b in zip(m, v, strict=True))
    return -likelihood / len(target) + constant + 2.0 * divergence / len(target)


def test_vae_is_the_evidence_bound():
    arrays = draw(8, 3, 2), draw(8, 3, 2, seed=1), draw(8, 4, seed=2), draw(8, 4, seed=3)

    def loss(*arrays, axis_name=None):
        return sum(losses.vae(*arrays, variance=0.3, beta=2.0, axis_name=axis_name))

    checks.equals_reference(loss, bound, *arrays)
    checks.same_on_devices(loss, *arrays)


def test_vae_of_the_prior_has_no_divergence_and_its_variance_is_bounded():
    image, code = np.zeros((2, 3)), np.zeros((2, 4))
    assert tuple(map(float, losses.vae(image, image, code, code))) == (0.0, 0.0)
    assert np.isfinite(losses.vae(image, image, code, np.full((2, 4), 1e4))[1])


@pytest.mark.parametrize("real", [True, False])
def test_hinge_is_how_far_scores_are_from_the_right_side_of_one(real):
    def reference(x):
        return np.mean([max(0.0, 1 - y if real else 1 + y) for y in x.ravel()])

    def loss(x, axis_name=None):
        return losses.hinge(x, real, axis_name=axis_name)

    scores = 2.0 * draw(8, 3)
    checks.equals_reference(loss, reference, scores)
    checks.same_on_devices(loss, scores)
    checks.finite_everywhere(loss, scores)
    checks.computed_in_float32((loss, [scores], 0))


@pytest.mark.parametrize("real", [True, False])
def test_adversarial_is_the_cross_entropy_of_the_sigmoid(real):
    def reference(x):
        p = 1 / (1 + np.exp(-x))
        return np.mean(-np.log(p if real else 1 - p))

    def loss(x, axis_name=None):
        return losses.adversarial(x, real, axis_name=axis_name)

    checks.equals_reference(loss, reference, draw(8, 2))
    checks.same_on_devices(loss, draw(8, 2))
    chance, _ = checks.value_and_grad(loss, np.zeros((8, 2), np.float32), argnums=(0,))
    np.testing.assert_allclose(chance, math.log(2), rtol=1e-6)
    assert np.isfinite(checks.value_and_grad(loss, np.float32([[1e30, -1e30]] * 8), argnums=(0,))[0])


def test_region_squared_error_counts_masked_pixels_alone():
    mask = np.random.default_rng(4).random((8, 4, 5)) < 0.3
    weights = np.random.default_rng(5).uniform(1, 10, (8, 4, 5)).astype(np.float32)

    def reference(p, t, mask, weights):
        return np.mean([weights[i] * np.mean((p[i] - t[i]) ** 2) for i in map(tuple, np.argwhere(mask))])

    def loss(p, t, mask, weights, axis_name=None):
        return losses.region_squared_error(p, t, mask, weights=weights, axis_name=axis_name)

    arrays = draw(8, 4, 5, 3), draw(8, 4, 5, 3, seed=1), mask, weights
    checks.equals_reference(loss, reference, *arrays, argnums=(0, 1))
    checks.same_on_devices(loss, *arrays, argnums=(0, 1))

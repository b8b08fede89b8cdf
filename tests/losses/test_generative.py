import math

import jax.numpy as jnp
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
    image = jnp.zeros((2, 3))
    assert losses.vae(image, image, jnp.zeros((2, 4)), jnp.zeros((2, 4))) == (0.0, 0.0)
    assert np.isfinite(losses.vae(image, image, jnp.zeros((2, 4)), jnp.full((2, 4), 1e4))[1])


@pytest.mark.parametrize("real", [True, False])
def test_adversarial_is_the_cross_entropy_of_the_sigmoid(real):
    def reference(x):
        p = 1 / (1 + np.exp(-x))
        return np.mean(-np.log(p if real else 1 - p))

    checks.equals_reference(lambda x: losses.adversarial(x, real), reference, draw(8, 2))
    checks.same_on_devices(lambda x, axis_name=None: losses.adversarial(x, real, axis_name=axis_name), draw(8, 2))
    np.testing.assert_allclose(losses.adversarial(jnp.zeros((3, 1)), real), math.log(2), rtol=1e-6)
    assert np.isfinite(losses.adversarial(jnp.array([1e30, -1e30]), real))


def test_region_squared_error_counts_masked_pixels_alone():
    mask = np.random.default_rng(4).random((8, 4, 5)) < 0.3
    weights = np.random.default_rng(5).uniform(1, 10, (8, 4, 5)).astype(np.float32)

    def reference(p, t):
        return np.mean([weights[i] * np.mean((p[i] - t[i]) ** 2) for i in map(tuple, np.argwhere(mask))])

    arrays = draw(8, 4, 5, 3), draw(8, 4, 5, 3, seed=1)
    checks.equals_reference(
        lambda p, t: losses.region_squared_error(p, t, jnp.asarray(mask), weights=jnp.asarray(weights)),
        reference,
        *arrays,
    )
    checks.same_on_devices(
        lambda p, t, mask, weights, axis_name=None: losses.region_squared_error(
            p, t, mask, weights=weights, axis_name=axis_name
        ),
        *arrays,
        mask,
        weights,
        argnums=(0, 1),
    )

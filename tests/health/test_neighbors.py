import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from ssl_jax import losses
from ssl_jax.health import neighbors

# Eagerly each operation would be compiled by itself.
nearest_neighbor_entropy, two_nn = jax.jit(neighbors.nearest_neighbor_entropy), jax.jit(neighbors.two_nn)


def of_each(metric, *features):
    """The metric of each, by one program."""
    return jax.device_get(jax.jit(lambda features: [metric(h) for h in features])(features))


def gaussian(images, dim, seed=0):
    return np.random.default_rng(seed).normal(size=(images, dim)).astype(np.float32)


def test_entropy_of_points_around_a_circle():
    numbers, circles = np.array([2, 3, 300]), []
    for points in numbers:
        angles = 2 * np.pi * np.arange(points) / points
        circle = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.linspace(0.1, 10, points)[:, None]
        circles.append(circle.astype(np.float32))
    expected = np.log(2 * np.sin(np.pi / numbers))  # neighbors are this far apart, whatever the rows' lengths
    np.testing.assert_allclose(of_each(neighbors.nearest_neighbor_entropy, *circles), expected, atol=1e-4)


def test_entropy_of_a_uniform_density_is_that_of_kozachenko_and_leonenko():
    """mean log r + log(2 (n - 1)) + Euler's constant estimates the entropy, here log 2 pi, of a circle."""
    n = 4000
    found = nearest_neighbor_entropy(gaussian(n, 2))
    # The logs' deviation is pi / sqrt(6), those of a pair are the same: 2.9 % of their mean.
    np.testing.assert_allclose(found, np.log(2 * np.pi) - np.log(2 * (n - 1)) - np.euler_gamma, atol=0.06)


def test_entropy_is_minus_koleo():
    both = jax.jit(lambda h: (neighbors.nearest_neighbor_entropy(h), -losses.koleo(h)))
    for scale in (1e-10, 1.0, 1e20):
        entropy, minus_koleo = both(np.float32(scale) * gaussian(300, 8))  # no multiple of the rows taken at a time
        np.testing.assert_allclose(entropy, minus_koleo, rtol=1e-5)
    duplicates, _ = both(np.ones((300, 8), np.float32))
    np.testing.assert_allclose(duplicates, np.log(1e-8), rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e25])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_two_nn_equals_scikit_learns_neighbors(offset, scale):
    h = (scale * (gaussian(333, 6).astype(np.float64) + offset)).astype(np.float32)
    distances, _ = NearestNeighbors(n_neighbors=3, algorithm="brute").fit(h.astype(np.float64)).kneighbors()
    expected = len(h) / np.sum(np.log(distances[:, 1] / distances[:, 0]))
    np.testing.assert_allclose(two_nn(h), expected, rtol=1e-3)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_two_nn_is_the_dimension_of_a_manifold_in_a_larger_space(dim):
    """Uniform on a cube, rotated into 30 dimensions, and bent. 1 / sqrt(2000) is the sampling error."""
    cube = np.random.default_rng(1).uniform(size=(2000, dim))
    rotation, _ = np.linalg.qr(gaussian(30, dim))
    unused = np.zeros((2000, 5 - dim))  # that all have one shape, and so one program
    h = np.concatenate([cube @ rotation.T, np.sin(3 * cube), unused], axis=1)
    np.testing.assert_allclose(two_nn(h.astype(np.float32)), dim, rtol=0.1)


def test_two_nn_of_known_distances():
    points = np.float32([[0], [1], [3], [0]])
    of_three, of_four, of_duplicates, of_nan = of_each(
        neighbors.two_nn, points[:3], points, np.ones((6, 4), np.float32), np.full((6, 4), np.nan, np.float32)
    )
    # 0, 1, 3 on a line: second over first 3, 2, 3/2.
    np.testing.assert_allclose(of_three, 3 / (np.log(3) + np.log(2) + np.log(1.5)), rtol=1e-5)
    # A second point at 0: both it and the first have a duplicate. 1 is twice as near as 3, but as near as the other 0.
    np.testing.assert_allclose(of_four, 2 / (np.log(1) + np.log(1.5)), rtol=1e-5)
    assert np.isnan(of_duplicates) and np.isnan(of_nan)


def test_computed_in_float32():
    rounded = gaussian(64, 16).astype(jnp.bfloat16)
    for metric in (neighbors.nearest_neighbor_entropy, neighbors.two_nn):
        of_rounded, of_wide = of_each(metric, rounded, rounded.astype(np.float32))
        assert of_rounded.dtype == jnp.float32
        assert of_rounded == of_wide

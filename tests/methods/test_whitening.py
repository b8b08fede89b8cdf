import numpy as np
import pytest

from ssl_jax.methods.toolkit.whitening import whitened


def draw(points=50, features=6):
    """Directions of deviations 3, 2.5, ..., turned, away from the origin."""
    rng = np.random.default_rng(0)
    turn, _ = np.linalg.qr(rng.normal(size=(features, features)))
    return (rng.normal(size=(points, features)) * (3.0 - 0.5 * np.arange(features)) @ turn + 5.0).astype(np.float32)


def reference(x, dim, valid):
    """By a singular value decomposition in float64."""
    x = x.astype(np.float64)
    centered = x - x[valid].mean(axis=0)
    _, singular, directions = np.linalg.svd(centered[valid], full_matrices=False)
    projected = centered @ directions[:dim].T / (singular[:dim] / np.sqrt(valid.sum()))
    return projected / np.linalg.norm(projected, axis=1, keepdims=True)


@pytest.mark.parametrize("dim, block_size, left_out", [(6, 4096, 0), (3, 7, 0), (4, 16, 11)])
def test_cosines_are_those_of_an_svd_in_float64(dim, block_size, left_out):
    x, valid = draw(), np.arange(50) >= left_out
    x[:left_out] *= 100.0
    found = np.asarray(whitened(x, dim, valid=valid if left_out else None, block_size=block_size))
    expected = reference(x, dim, valid)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-4)  # signs of directions are free


def test_directions_without_variance_give_zeros():
    x = np.concatenate([draw(features=2), np.full((50, 3), 7.0, np.float32)], axis=1)
    found = np.asarray(whitened(x, 4))
    np.testing.assert_array_equal(found[:, 2:], 0.0)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(whitened(np.ones((5, 3), np.float32), 2), 0.0)


@pytest.mark.parametrize(
    "shape, dim, valid, message",
    [
        ((5, 3), 4, None, r"4 directions need points \[points, features\] of at least as many, got \(5, 3\)"),
        ((5,), 1, None, "got \\(5,\\)"),
        ((5, 3), 2, np.ones(4, bool), r"valid must be \[points\]"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_refusals(shape, dim, valid, message):
    with pytest.raises(ValueError, match=message):
        whitened(np.ones(shape, np.float32), dim, valid=valid)

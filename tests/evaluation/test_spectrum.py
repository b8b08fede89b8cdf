import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from ssl_jax.evaluation import spectrum
from ssl_jax.evaluation.spectrum import lidar, spectral

# Eagerly each operation would be compiled by itself.
rankme, stable_rank, pseudo_condition_number, nesum, participation_ratio, alpha_req = map(
    jax.jit,
    (
        spectrum.rankme,
        spectrum.stable_rank,
        spectrum.pseudo_condition_number,
        spectrum.nesum,
        spectrum.participation_ratio,
        spectrum.alpha_req,
    ),
)
top_share = jax.jit(spectrum.top_share, static_argnames="k")


def gaussian(images, dim, seed=0):
    return np.random.default_rng(seed).normal(size=(images, dim)).astype(np.float32)


def with_singular_values(singular, *, images, dim, offset=0.0):
    """Centered features of these singular values, rotated on both sides; then moved by `offset` in each dimension."""
    rng = np.random.default_rng(0)
    left = rng.normal(size=(images, len(singular)))
    left, _ = np.linalg.qr(left - left.mean(axis=0))
    right, _ = np.linalg.qr(rng.normal(size=(dim, len(singular))))
    return (left * singular @ right.T + offset).astype(np.float32)


@pytest.mark.parametrize("scale", [1e-10, 0.3, 1e10])
@pytest.mark.parametrize("dim, rank", [(32, 32), (32, 5), (32, 1)])
def test_rankme_of_equal_singular_values_is_their_number(dim, rank, scale):
    z = scale * np.eye(dim, dtype=np.float32)[:rank]
    np.testing.assert_allclose(rankme(np.concatenate([z, z, -z])), rank, rtol=1e-4)


def test_rankme_of_known_singular_values():
    """3/4, 1/8, 1/8, after a rotation on both sides: entropy 3/4 log 4/3 + 1/4 log 8."""
    expected = np.exp(0.75 * np.log(4 / 3) + 0.25 * np.log(8))
    np.testing.assert_allclose(rankme(with_singular_values([6.0, 1.0, 1.0], images=20, dim=7)), expected, rtol=1e-4)


def test_rankme_is_not_centered_and_uses_singular_values():
    """A common offset makes one large singular value. Of singular values 1 and 9 the eigenvalues would be 1 and 81."""
    assert rankme(gaussian(500, 16)) > 15
    assert rankme(gaussian(500, 16) + 100.0) < 1.8
    expected = np.exp(-0.1 * np.log(0.1) - 0.9 * np.log(0.9))
    np.testing.assert_allclose(rankme(np.diag(np.array([1.0, 9.0], np.float32))), expected, rtol=1e-4)


def test_rankme_of_zeros_is_finite():
    np.testing.assert_allclose(rankme(np.zeros((10, 4), np.float32)), 1, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e20])
def test_metrics_of_known_singular_values(scale):
    """4, 2, 2, 1: squares 16, 4, 4, 1 of sum 25, whose squares have the sum 289."""
    h = with_singular_values(scale * np.array([4.0, 2.0, 2.0, 1.0]), images=30, dim=4)
    np.testing.assert_allclose(stable_rank(h), 25 / 16, rtol=1e-5)
    np.testing.assert_allclose(nesum(h), 25 / 16, rtol=1e-5)
    np.testing.assert_allclose(participation_ratio(h), 625 / 289, rtol=1e-5)
    np.testing.assert_allclose(pseudo_condition_number(h), 1 / 4, rtol=1e-5)
    np.testing.assert_allclose([top_share(h, k=k) for k in (1, 3, 9)], [16 / 25, 24 / 25, 1], rtol=1e-5)


def test_which_metrics_an_offset_changes():
    """16 along each of 4 dimensions and 30 images: one more singular value of about 16 sqrt(4 * 30) = 175."""
    offset = with_singular_values([4.0, 2.0, 2.0, 1.0], images=30, dim=4, offset=16.0)
    assert stable_rank(offset) < 1.001 and pseudo_condition_number(offset) < 0.02
    np.testing.assert_allclose(nesum(offset), 25 / 16, rtol=1e-4)
    np.testing.assert_allclose(participation_ratio(offset), 625 / 289, rtol=1e-4)
    np.testing.assert_allclose(top_share(offset, k=1), 16 / 25, rtol=1e-4)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("dim", [20, 200])
def test_alpha_req_of_a_power_law_is_its_exponent(dim, alpha, offset):
    singular = np.arange(1, dim + 1) ** (-alpha / 2)
    found, r2 = alpha_req(with_singular_values(singular, images=300, dim=dim, offset=offset * 0.1))
    np.testing.assert_allclose(found, alpha, atol=2e-3)
    if alpha > 0:
        np.testing.assert_allclose(r2, 1, atol=1e-4)


def test_alpha_req_fits_the_middle_of_the_spectrum_with_falling_weights():
    rng = np.random.default_rng(0)
    singular = np.sort(rng.uniform(0.01, 1, 150))[::-1]
    singular[:4] *= 50  # not fitted, as what follows the 99th
    singular[99:] *= 1e-2
    j = np.arange(5, 100)
    slope, intercept = np.polyfit(np.log(j), 2 * np.log(singular[4:99]), 1, w=np.sqrt(1 / j))
    errors = 2 * np.log(singular[4:99]) - slope * np.log(j) - intercept
    spread = 2 * np.log(singular[4:99])
    spread = spread - np.average(spread, weights=1 / j)
    alpha, r2 = alpha_req(with_singular_values(singular, images=400, dim=150))
    np.testing.assert_allclose(alpha, -slope, rtol=1e-3)
    np.testing.assert_allclose(r2, 1 - np.sum(errors**2 / j) / np.sum(spread**2 / j), rtol=1e-3)
    assert r2 < 0.95  # else equal to anything near 1


def test_alpha_req_leaves_rounding_errors_out():
    """Of 200 dimensions 40 are in use; the others' singular values are rounding errors, 1e-7 of the first."""
    singular = np.arange(1, 41) ** -0.5
    alpha, r2 = alpha_req(with_singular_values(singular, images=300, dim=200))
    np.testing.assert_allclose([alpha, r2], [1, 1], atol=1e-3)


@pytest.mark.parametrize("images, dim", [(300, 4), (300, 5), (5, 300)])
def test_alpha_req_of_too_few_eigenvalues_is_nan(images, dim):
    assert np.isnan(alpha_req(gaussian(images, dim))).all()


def labeled_views(images, num_views, dim, seed=0):
    """Images apart along each dimension by another amount than their views are, all correlated by a rotation."""
    rng = np.random.default_rng(seed)
    between = rng.normal(size=(images, 1, dim)) * np.linspace(0.2, 3, dim)
    within = rng.normal(size=(images, num_views, dim)) * np.linspace(2, 0.1, dim)
    return (between + within) @ rng.normal(size=(dim, dim)) + 5.0


def lidar_reference(views, delta):
    """In float64, by the generalized eigenvalues of the two covariances."""
    images, num_views, dim = views.shape
    means = views.mean(axis=1)
    within = (views - means[:, None]).reshape(-1, dim)
    within = within.T @ within / (images * (num_views - 1)) + delta * np.eye(dim)
    values = np.maximum(scipy.linalg.eigh(np.cov(means.T), within, eigvals_only=True), 0)
    p = values / values.sum() + 1e-8
    return np.exp(-np.sum(p * np.log(p)))


@pytest.mark.parametrize("images, num_views, dim", [(60, 5, 12), (60, 2, 12), (8, 3, 12), (3, 2, 12)])
@pytest.mark.parametrize("delta", [1e-4, 1.0])
def test_lidar_equals_the_generalized_eigenvalues(images, num_views, dim, delta):
    views = labeled_views(images, num_views, dim)
    found = jax.jit(functools.partial(lidar, delta=delta))(jnp.asarray(views, jnp.float32))
    # With fewer views than dimensions delta alone is the variance along some.
    np.testing.assert_allclose(found, lidar_reference(views, delta), rtol=1e-3)
    assert 1 <= found <= min(images - 1, dim) * 1.001


def test_lidar_at_known_covariances():
    """Four images on two axes, their views apart along a third, or, by the same amount, along the first."""
    measured = jax.jit(lidar)
    means = 3.0 * np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]], np.float32)
    apart = np.array([0, 0, 1], np.float32)
    np.testing.assert_allclose(measured(np.stack([means + apart, means - apart], 1)), 2, rtol=1e-4)
    # Between 6 and 6, within 2 + delta and delta: eigenvalues 3 and 60,000.
    apart = np.array([1, 0, 0], np.float32)
    p = np.array([3, 60_000]) / 60_003
    expected = np.exp(-np.sum(p * np.log(p)))
    np.testing.assert_allclose(measured(np.stack([means + apart, means - apart], 1)), expected, rtol=1e-4)


def test_lidar_keeps_delta_beside_large_variances():
    """Of W in float32 a delta of 1e-4 would be lost beside a variance of 1e4, and with it the axes without any."""
    views = labeled_views(40, 4, 12)
    views[:, :, 0] *= 1e2
    views[:, :, 5:] = views[:, :1, 5:]  # the same in all views
    found = jax.jit(lidar)(jnp.asarray(views, jnp.float32))
    np.testing.assert_allclose(found, lidar_reference(views, 1e-4), rtol=1e-2)


@pytest.mark.parametrize("shape", [(1, 5, 3), (5, 1, 3)])
def test_lidar_refuses_a_single_image_or_view(shape):
    with pytest.raises(ValueError, match="two images and two views"):
        lidar(jnp.zeros(shape))


def test_spectral_is_all_of_them_from_two_svds():
    h = gaussian(200, 20) @ gaussian(20, 70, seed=1) + 0.5
    compiled = jax.jit(spectral).lower(h).compile()
    assert compiled.as_text().count('custom_call_target="lapack_sgesdd') == 2
    alpha, r2 = alpha_req(h)
    expected = {
        "rankme": rankme(h),
        "stable_rank": stable_rank(h),
        "pseudo_condition_number": pseudo_condition_number(h),
        "nesum": nesum(h),
        "participation_ratio": participation_ratio(h),
        "top8_share": top_share(h, k=8),
        "top64_share": top_share(h, k=64),
        "alpha_req": alpha,
        "alpha_req_r2": r2,
    }
    found = compiled(h)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_computed_in_float32_inside_jit():
    rounded = jnp.asarray(gaussian(64, 16), jnp.bfloat16)
    found, expected = jax.jit(spectral)(rounded), jax.jit(spectral)(rounded.astype(jnp.float32))
    assert all(value.dtype == jnp.float32 for value in found.values())
    assert found == expected
    views = jnp.stack([rounded, -rounded], axis=1)
    assert jax.jit(lidar)(views) == jax.jit(lidar)(views.astype(jnp.float32))

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from ssl_jax.health import spectrum
from ssl_jax.health.spectrum import lidar, spectral

# A shape is a program: tests share them.
rankme, alpha_req = jax.jit(spectrum.rankme), jax.jit(spectrum.alpha_req)


@jax.jit
def each(h):
    """Every metric, each by its own function."""
    alpha, r2 = spectrum.alpha_req(h)
    shares = {f"top{k}_share": spectrum.top_share(h, k=k) for k in (1, 3, 8, 64)}
    names = ("rankme", "stable_rank", "pseudo_condition_number", "nesum", "participation_ratio")
    return {name: getattr(spectrum, name)(h) for name in names} | shares | {"alpha_req": alpha, "alpha_req_r2": r2}


def gaussian(images, dim, seed=0):
    return np.random.default_rng(seed).normal(size=(images, dim)).astype(np.float32)


def with_singular_values(singular, *, images, dim, offset=0.0):
    """Centered features of these singular values, rotated on both sides; then moved by `offset` in each dimension."""
    rng = np.random.default_rng(0)
    left = rng.normal(size=(images, len(singular)))
    left, _ = np.linalg.qr(left - left.mean(axis=0))
    right, _ = np.linalg.qr(rng.normal(size=(dim, len(singular))))
    return (left * singular @ right.T + offset).astype(np.float32)


def padded(h):
    """With rows and columns of zeros, which change no singular value but 0: [96, 32]."""
    return np.pad(np.asarray(h, np.float32), ((0, 96 - len(h)), (0, 32 - len(h[0]))))


@pytest.mark.parametrize("scale", [1e-10, 0.3, 1e10])
@pytest.mark.parametrize("rank", [32, 5, 1])
def test_rankme_of_equal_singular_values_is_their_number(rank, scale):
    z = scale * np.eye(32, dtype=np.float32)[:rank]
    np.testing.assert_allclose(rankme(padded(np.concatenate([z, z, -z]))), rank, rtol=1e-4)


def test_rankme_of_known_singular_values():
    """3/4, 1/8, 1/8, after a rotation on both sides: entropy 3/4 log 4/3 + 1/4 log 8."""
    expected = np.exp(0.75 * np.log(4 / 3) + 0.25 * np.log(8))
    np.testing.assert_allclose(rankme(with_singular_values([6.0, 1.0, 1.0], images=96, dim=32)), expected, rtol=1e-4)


def test_rankme_is_not_centered_and_uses_singular_values():
    """A common offset makes one large singular value. Of singular values 1 and 9 the eigenvalues would be 1 and 81."""
    assert rankme(gaussian(96, 32)) > 28
    assert rankme(gaussian(96, 32) + np.float32(100)) < 1.8
    expected = np.exp(-0.1 * np.log(0.1) - 0.9 * np.log(0.9))
    np.testing.assert_allclose(rankme(padded(np.diag([1.0, 9.0]))), expected, rtol=1e-4)


def test_rankme_of_zeros_is_finite():
    np.testing.assert_allclose(rankme(np.zeros((96, 32), np.float32)), 1, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e20])
def test_metrics_of_known_singular_values(scale):
    """4, 2, 2, 1: squares 16, 4, 4, 1 of sum 25, whose squares have the sum 289."""
    found = each(with_singular_values(scale * np.array([4.0, 2.0, 2.0, 1.0]), images=30, dim=4))
    expected = {"stable_rank": 25 / 16, "nesum": 25 / 16, "participation_ratio": 625 / 289}
    expected |= {"pseudo_condition_number": 1 / 4, "top1_share": 16 / 25, "top3_share": 24 / 25, "top8_share": 1}
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def test_which_metrics_an_offset_changes():
    """16 along each of 4 dimensions and 30 images: one more singular value of about 16 sqrt(4 * 30) = 175."""
    found = each(with_singular_values([4.0, 2.0, 2.0, 1.0], images=30, dim=4, offset=16.0))
    assert found["stable_rank"] < 1.001 and found["pseudo_condition_number"] < 0.02
    np.testing.assert_allclose(found["nesum"], 25 / 16, rtol=1e-4)
    np.testing.assert_allclose(found["participation_ratio"], 625 / 289, rtol=1e-4)
    np.testing.assert_allclose(found["top1_share"], 16 / 25, rtol=1e-4)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("dim", [20, 120])
def test_alpha_req_of_a_power_law_is_its_exponent(dim, alpha, offset):
    singular = np.arange(1, dim + 1) ** (-alpha / 2)
    found, r2 = alpha_req(with_singular_values(singular, images=160, dim=dim, offset=offset * 0.1))
    np.testing.assert_allclose(found, alpha, atol=2e-3)
    if alpha > 0:
        np.testing.assert_allclose(r2, 1, atol=1e-4)


def test_alpha_req_fits_the_middle_of_the_spectrum_with_falling_weights():
    rng = np.random.default_rng(0)
    singular = np.sort(rng.uniform(0.01, 1, 120))[::-1]
    singular[:4] *= 50  # not fitted, as what follows the 99th
    singular[99:] *= 1e-2
    j = np.arange(5, 100)
    slope, intercept = np.polyfit(np.log(j), 2 * np.log(singular[4:99]), 1, w=np.sqrt(1 / j))
    errors = 2 * np.log(singular[4:99]) - slope * np.log(j) - intercept
    spread = 2 * np.log(singular[4:99])
    spread = spread - np.average(spread, weights=1 / j)
    alpha, r2 = alpha_req(with_singular_values(singular, images=160, dim=120))
    np.testing.assert_allclose(alpha, -slope, rtol=1e-3)
    np.testing.assert_allclose(r2, 1 - np.sum(errors**2 / j) / np.sum(spread**2 / j), rtol=1e-3)
    assert r2 < 0.95  # else equal to anything near 1


def test_alpha_req_leaves_rounding_errors_out():
    """Of 120 dimensions 40 are in use; the others' singular values are rounding errors, 1e-7 of the first."""
    singular = np.arange(1, 41) ** -0.5
    alpha, r2 = alpha_req(with_singular_values(singular, images=160, dim=120))
    np.testing.assert_allclose([alpha, r2], [1, 1], atol=1e-3)


def test_alpha_req_of_too_few_eigenvalues_is_nan():
    features = [gaussian(*shape) for shape in [(60, 4), (60, 5), (5, 60)]]
    found = jax.jit(lambda features: [spectrum.alpha_req(h) for h in features])(features)
    assert np.isnan(found).all()


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


@pytest.mark.parametrize("delta", [1e-4, 1.0])
def test_lidar_equals_the_generalized_eigenvalues(delta):
    # With fewer views than dimensions delta alone is the variance along some.
    sizes = [(60, 5), (60, 2), (8, 3), (3, 2)]
    all_views = [labeled_views(*size, 12).astype(np.float32) for size in sizes]
    found = jax.jit(lambda all_views: [lidar(views, delta=delta) for views in all_views])(all_views)
    for (images, _), views, value in zip(sizes, all_views, found, strict=True):
        np.testing.assert_allclose(value, lidar_reference(views.astype(np.float64), delta), rtol=1e-3)
        assert 1 <= value <= min(images - 1, 12) * 1.001


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
    found = jax.jit(lidar)(views.astype(np.float32))
    np.testing.assert_allclose(found, lidar_reference(views, 1e-4), rtol=1e-2)


@pytest.mark.parametrize("shape", [(1, 5, 3), (5, 1, 3)])
def test_lidar_refuses_a_single_image_or_view(shape):
    with pytest.raises(ValueError, match="two images and two views"):
        lidar(jnp.zeros(shape))


def test_spectral_is_all_of_them_from_two_svds():
    h = gaussian(90, 20) @ gaussian(20, 70, seed=1) + np.float32(0.5)
    compiled = jax.jit(spectral).lower(h).compile()
    assert compiled.as_text().count('custom_call_target="lapack_sgesdd') == 2
    found, expected = compiled(h), each(h)
    assert set(expected) - set(found) == {"top1_share", "top3_share"}
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_computed_in_float32_inside_jit():
    rounded = gaussian(64, 16).astype(jnp.bfloat16)

    def metrics(h):
        return {**spectral(h), "lidar": lidar(jnp.stack([h, -h], axis=1))}

    found, expected = jax.jit(lambda *features: [metrics(h) for h in features])(rounded, rounded.astype(np.float32))
    assert all(value.dtype == jnp.float32 for value in found.values())
    assert found == expected

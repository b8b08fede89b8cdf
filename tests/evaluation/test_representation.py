import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.evaluation.representation import alignment, collapse, embedding_std, rankme, uniformity


def gaussian(images, dim, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(images, dim)), jnp.float32)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e20])
@pytest.mark.parametrize("dim", [8, 64])
def test_embedding_std_of_axes_is_the_full_spread(dim, scale):
    """Each axis once in both directions: mean 0, and 2 / (2 dim - 1) the unbiased variance."""
    z = jnp.concatenate([jnp.eye(dim), -jnp.eye(dim)]) * scale
    np.testing.assert_allclose(embedding_std(z), np.sqrt(2 / (2 * dim - 1)), rtol=1e-5)


def test_embedding_std_of_random_directions():
    np.testing.assert_allclose(embedding_std(gaussian(4096, 128)), 1 / np.sqrt(128), rtol=0.01)  # sampling: 0.4 %


def test_embedding_std_of_collapse_is_zero():
    lengths = jnp.linspace(0.1, 10, 50)[:, None]
    np.testing.assert_allclose(embedding_std(lengths * gaussian(1, 16)), 0, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-10, 0.3, 1e10])
@pytest.mark.parametrize("dim, rank", [(32, 32), (32, 5), (32, 1)])
def test_rankme_of_equal_singular_values_is_their_number(dim, rank, scale):
    z = scale * jnp.eye(dim)[:rank]
    np.testing.assert_allclose(rankme(jnp.concatenate([z, z, -z])), rank, rtol=1e-4)


def test_rankme_of_known_singular_values():
    """3/4, 1/8, 1/8, after a rotation on both sides: entropy 3/4 log 4/3 + 1/4 log 8."""
    left, _ = np.linalg.qr(gaussian(20, 3))
    right, _ = np.linalg.qr(gaussian(7, 3, seed=1))
    z = left @ np.diag([6.0, 1.0, 1.0]) @ right.T
    expected = np.exp(0.75 * np.log(4 / 3) + 0.25 * np.log(8))
    np.testing.assert_allclose(rankme(jnp.asarray(z, jnp.float32)), expected, rtol=1e-4)


def test_rankme_is_not_centered_and_uses_singular_values():
    """A common offset makes one large singular value. Of singular values 1 and 9 the eigenvalues would be 1 and 81."""
    assert rankme(gaussian(500, 16)) > 15
    assert rankme(gaussian(500, 16) + 100.0) < 1.8
    expected = np.exp(-0.1 * np.log(0.1) - 0.9 * np.log(0.9))
    np.testing.assert_allclose(rankme(jnp.diag(jnp.array([1.0, 9.0]))), expected, rtol=1e-4)


def test_rankme_of_zeros_is_finite():
    np.testing.assert_allclose(rankme(jnp.zeros((10, 4))), 1, atol=1e-4)


def test_alignment_at_known_angles():
    z = gaussian(20, 8)
    np.testing.assert_allclose(alignment(z, 7 * z), 0, atol=1e-10)
    np.testing.assert_allclose(alignment(z, -z), 4, rtol=1e-5)
    np.testing.assert_allclose(alignment(z, -z, alpha=1.0), 2, rtol=1e-5)
    e = jnp.eye(8)
    np.testing.assert_allclose(alignment(e, jnp.roll(e, 1, axis=0)), 2, rtol=1e-5)  # orthogonal pairs
    half = jnp.concatenate([e, e]), jnp.concatenate([e, -e])
    np.testing.assert_allclose(alignment(*half), 2, rtol=1e-5)  # the mean of 0 and 4


def test_uniformity_of_known_directions():
    np.testing.assert_allclose(uniformity(jnp.ones((30, 8))), 0, atol=1e-5)
    # Orthogonal pairs are sqrt(2) apart: -2 t. Pairs of a row with itself (0) do not count.
    np.testing.assert_allclose(uniformity(3 * jnp.eye(16)), -4, rtol=1e-5)
    np.testing.assert_allclose(uniformity(jnp.eye(16), t=50.0), -100, rtol=1e-5)
    # +e and -e of two axes: of the other three, two at squared distance 2 and one at 4.
    cross = jnp.concatenate([jnp.eye(2), -jnp.eye(2)])
    np.testing.assert_allclose(uniformity(cross), np.log((2 * np.exp(-4) + np.exp(-8)) / 3), rtol=1e-5)


def test_uniformity_of_random_directions():
    """log E exp(-2 (2 - 2 c)), c the cosine, of variance 1 / dim: -4 + 8 / dim."""
    np.testing.assert_allclose(uniformity(gaussian(500, 512)), -4 + 8 / 512, atol=5e-3)


def test_computed_in_float32_inside_jit():
    z1, z2 = gaussian(64, 16), gaussian(64, 16, seed=1)
    for metric, z in [(embedding_std, (z1,)), (rankme, (z1,)), (uniformity, (z1,)), (alignment, (z1, z2))]:
        rounded = [a.astype(jnp.bfloat16) for a in z]
        value = jax.jit(metric)(*rounded)
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, metric(*(a.astype(jnp.float32) for a in rounded)), rtol=1e-5)


HEALTHY = {"loss": 3.0, "embedding_std": 0.12, "rankme": 40.0, "embedding_dim": 64.0, "rank_limit": 64.0}


@pytest.mark.parametrize(
    "changes, chance_level, alarms",
    [
        ({}, 5.0, []),
        ({}, None, []),
        ({"loss": 5.001}, 5.0, ["loss"]),  # SimCLR at log(2B - 1)
        ({"loss": 0.001}, 0.0, ["loss"]),  # BYOL's predictions all equal
        ({"loss": -0.97}, -1.0, []),  # SimSiam near its optimum
        ({"embedding_std": 0.03}, 5.0, ["embedding_std"]),  # a quarter of 1/8 is 0.031
        ({"rankme": 6.0}, 5.0, ["rankme"]),
        ({"colored_share": 0.5}, None, []),
        ({"colored_share": 0.0}, None, ["colored_share"]),  # colorization of Fashion-MNIST
        ({"embedding_std": 0.0, "rankme": 1.0, "loss": 5.0}, 5.0, ["embedding_std", "rankme", "loss"]),
    ],
)
def test_collapse_names_what_shows_it(changes, chance_level, alarms):
    assert list(collapse({**HEALTHY, **changes}, chance_level)) == alarms

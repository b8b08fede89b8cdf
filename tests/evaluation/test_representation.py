import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.evaluation import representation
from ssl_jax.evaluation.neighbors import nearest_neighbor_entropy, two_nn
from ssl_jax.evaluation.representation import (
    alignment,
    embedding_std,
    feature_deviation,
    self_cluster,
    summary,
    uniformity,
)
from ssl_jax.evaluation.spectrum import spectral


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


def test_feature_deviation_of_known_columns():
    """Unbiased variances 4/3, 12 and 0, in the features' own scale, their mean aside."""
    h = jnp.array([[1.0, 3, 0], [-1, -3, 0], [1, 3, 0], [-1, -3, 0]]) + 7.0
    np.testing.assert_allclose(feature_deviation(h), (np.sqrt(4 / 3) + np.sqrt(12)) / 3, rtol=1e-5)
    np.testing.assert_allclose(feature_deviation(jnp.ones((5, 3))), 0, atol=1e-7)


@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e20])
@pytest.mark.parametrize("images, dim", [(60, 8), (6, 40)])
def test_self_cluster_by_its_definition(images, dim, scale):
    h = np.random.default_rng(0).normal(size=(images, dim)) + 0.3
    z = h / np.linalg.norm(h, axis=1, keepdims=True)
    chance = images + images * (images - 1) / dim
    expected = (np.sum((z @ z.T) ** 2) - chance) / (images**2 - chance)
    np.testing.assert_allclose(jax.jit(self_cluster)(jnp.asarray(scale * h, jnp.float32)), expected, atol=1e-6)


def test_self_cluster_of_known_directions():
    lengths = jnp.linspace(-3, 3, 30)[:, None]  # on both sides of the origin
    np.testing.assert_allclose(self_cluster(lengths * jnp.ones((1, 8))), 1, rtol=1e-5)
    np.testing.assert_allclose(self_cluster(gaussian(3000, 64)), 0, atol=1e-3)
    np.testing.assert_allclose(self_cluster(jnp.eye(16)), -1 / 15, rtol=1e-5)  # more even than chance


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
    of_one = [(metric, (z1,)) for metric in (embedding_std, feature_deviation, self_cluster, uniformity)]
    for metric, z in [*of_one, (alignment, (z1, z2))]:
        rounded = [a.astype(jnp.bfloat16) for a in z]
        value = jax.jit(metric)(*rounded)
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, jax.jit(metric)(*(a.astype(jnp.float32) for a in rounded)), rtol=1e-6)


def test_summary_has_each_metric_of_the_features():
    h = gaussian(300, 20) + 0.2
    expected = {
        **jax.jit(spectral)(h),
        "embedding_std": embedding_std(h),
        "feature_deviation": feature_deviation(h),
        "self_cluster": self_cluster(h),
        "uniformity": uniformity(h),
        "nearest_neighbor_entropy": jax.jit(nearest_neighbor_entropy)(h),
        "two_nn": jax.jit(two_nn)(h),
    }
    found = summary(np.asarray(h))
    assert found.keys() == expected.keys()
    assert all(type(value) is float for value in found.values())
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_summary_compares_images_of_all_parts_of_a_large_set(monkeypatch):
    """Ordered by class, as folders are: two directions, half of the images each."""
    monkeypatch.setattr(representation, "COMPARED", 100)
    h = np.repeat(np.eye(8, dtype=np.float32)[:2], 500, axis=0)
    # Of the pairs of 100 images 49 / 99 are in one direction, and the others sqrt(2) apart.
    np.testing.assert_allclose(summary(h)["uniformity"], np.log((49 + 50 * np.exp(-4)) / 99), rtol=1e-4)


def test_summary_leaves_out_what_is_not_defined():
    assert not {"alpha_req", "alpha_req_r2", "two_nn"} & summary(np.ones((6, 4), np.float32)).keys()


def test_summary_refuses_what_it_cannot_measure():
    with pytest.raises(ValueError, match="got 2 images"):
        summary(np.ones((2, 4), np.float32))
    with pytest.raises(ValueError, match="1 of 5 rows"):
        summary(np.array([[1.0, 2.0]] * 4 + [[np.inf, 0.0]], np.float32))

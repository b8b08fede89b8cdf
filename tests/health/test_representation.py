import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.health import representation
from ssl_jax.health.neighbors import nearest_neighbor_entropy, two_nn
from ssl_jax.health.representation import alignment, embedding_std, feature_deviation, self_cluster, summary, uniformity
from ssl_jax.health.spectrum import spectral


def gaussian(images, dim, seed=0):
    return np.random.default_rng(seed).normal(size=(images, dim)).astype(np.float32)


def eye(dim):
    return np.eye(dim, dtype=np.float32)


def cross(dim):
    """Each axis once in both directions."""
    return np.concatenate([eye(dim), -eye(dim)])


def of_each(metric, *batches, vmapped=False):
    """The metric of each batch, which is an array or several arguments; all of them by one program."""
    metric = jax.vmap(metric) if vmapped else metric
    batches = [batch if isinstance(batch, tuple) else (batch,) for batch in batches]
    return jax.device_get(jax.jit(lambda batches: [metric(*batch) for batch in batches])(batches))


def test_embedding_std_of_axes_is_the_full_spread():
    """Mean 0, and 2 / (2 dim - 1) the unbiased variance, whatever the scale."""
    scales = np.float32([1e-8, 1.0, 1e20])[:, None, None]
    found = of_each(embedding_std, scales * cross(8), scales * cross(64), vmapped=True)
    for dim, of_dim in zip((8, 64), found, strict=True):
        np.testing.assert_allclose(of_dim, [np.sqrt(2 / (2 * dim - 1))] * 3, rtol=1e-5)


def test_embedding_std_of_random_directions_and_of_collapse():
    lengths = np.linspace(0.1, 10, 50, dtype=np.float32)[:, None]
    random, collapsed = of_each(embedding_std, gaussian(4096, 128), lengths * gaussian(1, 16))
    np.testing.assert_allclose(random, 1 / np.sqrt(128), rtol=0.01)  # sampling: 0.4 %
    np.testing.assert_allclose(collapsed, 0, atol=1e-6)


def test_feature_deviation_of_known_columns():
    """Unbiased variances 4/3, 12 and 0, in the features' own scale, their mean aside."""
    h = np.float32([[1, 3, 0], [-1, -3, 0], [1, 3, 0], [-1, -3, 0]]) + 7
    known, same = of_each(feature_deviation, h, np.ones_like(h))
    np.testing.assert_allclose(known, (np.sqrt(4 / 3) + np.sqrt(12)) / 3, rtol=1e-5)
    np.testing.assert_allclose(same, 0, atol=1e-7)


def test_self_cluster_by_its_definition():
    sizes, scales = [(60, 8), (6, 40)], np.array([1e-10, 1.0, 1e20])[:, None, None]
    features = [np.random.default_rng(0).normal(size=size) + 0.3 for size in sizes]
    found = of_each(self_cluster, *((scales * h).astype(np.float32) for h in features), vmapped=True)
    for (images, dim), h, of_size in zip(sizes, features, found, strict=True):
        z = h / np.linalg.norm(h, axis=1, keepdims=True)
        chance = images + images * (images - 1) / dim
        expected = (np.sum((z @ z.T) ** 2) - chance) / (images**2 - chance)
        np.testing.assert_allclose(of_size, [expected] * 3, atol=1e-6)


def test_self_cluster_of_known_directions():
    lengths = np.linspace(-3, 3, 30, dtype=np.float32)[:, None]  # on both sides of the origin
    line, random, axes = of_each(self_cluster, lengths * np.ones((1, 8), np.float32), gaussian(3000, 64), eye(16))
    np.testing.assert_allclose(line, 1, rtol=1e-5)
    np.testing.assert_allclose(random, 0, atol=1e-3)
    np.testing.assert_allclose(axes, -1 / 15, rtol=1e-5)  # more even than chance


def test_alignment_at_known_angles():
    z, e = gaussian(16, 8), eye(8)
    twice = np.concatenate([e, e])
    same, opposite, orthogonal, half = of_each(
        alignment,
        (z, 7 * z),
        (z, -z),
        (twice, np.roll(twice, 1, axis=0)),
        (twice, cross(8)),  # the mean of 0 and 4
    )
    np.testing.assert_allclose(same, 0, atol=1e-10)
    np.testing.assert_allclose(opposite, 4, rtol=1e-5)
    np.testing.assert_allclose([orthogonal, half], 2, rtol=1e-5)
    np.testing.assert_allclose(of_each(functools.partial(alignment, alpha=1.0), (z, -z)), [2], rtol=1e-5)


def test_uniformity_of_known_directions():
    one, axes, crossed, random = of_each(
        uniformity, np.ones((30, 8), np.float32), 3 * eye(16), cross(2), gaussian(500, 512)
    )
    np.testing.assert_allclose(one, 0, atol=1e-5)
    # Orthogonal pairs are sqrt(2) apart: -2 t. Pairs of a row with itself (0) do not count.
    np.testing.assert_allclose(axes, -4, rtol=1e-5)
    np.testing.assert_allclose(of_each(functools.partial(uniformity, t=50.0), eye(16)), [-100], rtol=1e-5)
    # +e and -e of two axes: of the other three, two at squared distance 2 and one at 4.
    np.testing.assert_allclose(crossed, np.log((2 * np.exp(-4) + np.exp(-8)) / 3), rtol=1e-5)
    # log E exp(-2 (2 - 2 c)), c the cosine, of variance 1 / dim: -4 + 8 / dim.
    np.testing.assert_allclose(random, -4 + 8 / 512, atol=5e-3)


def test_computed_in_float32_inside_jit():
    rounded = [gaussian(64, 16, seed=seed).astype(jnp.bfloat16) for seed in (0, 1)]
    wide = [z.astype(np.float32) for z in rounded]

    def all_metrics(z1, z2):
        of_one = [metric(z1) for metric in (embedding_std, feature_deviation, self_cluster, uniformity)]
        return [*of_one, alignment(z1, z2)]

    of_rounded, of_wide = jax.jit(lambda rounded, wide: (all_metrics(*rounded), all_metrics(*wide)))(rounded, wide)
    assert all(value.dtype == jnp.float32 for value in of_rounded)
    np.testing.assert_allclose(jax.device_get(of_rounded), jax.device_get(of_wide), rtol=1e-6)


H = gaussian(300, 20) + np.float32(0.2)  # summary's programs are those of its shape


def test_summary_has_each_metric_of_the_features():
    @jax.jit
    def each(h):
        return spectral(h) | {
            "embedding_std": embedding_std(h),
            "feature_deviation": feature_deviation(h),
            "self_cluster": self_cluster(h),
            "uniformity": uniformity(h),
            "nearest_neighbor_entropy": nearest_neighbor_entropy(h),
            "two_nn": two_nn(h),
        }

    expected, found = each(H), summary(H)
    assert found.keys() == expected.keys()
    assert all(type(value) is float for value in found.values())
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_summary_compares_images_of_all_parts_of_a_large_set(monkeypatch):
    """Ordered by class, as folders are: two directions, half of the images each."""
    monkeypatch.setattr(representation, "COMPARED", 100)
    h = np.repeat(np.eye(20, dtype=np.float32)[:2], 150, axis=0)
    # Of the pairs of 100 images 49 / 99 are in one direction, and the others sqrt(2) apart.
    np.testing.assert_allclose(summary(h)["uniformity"], np.log((49 + 50 * np.exp(-4)) / 99), rtol=1e-4)


def test_summary_leaves_out_what_is_not_defined():
    assert not {"alpha_req", "alpha_req_r2", "two_nn"} & summary(np.ones_like(H)).keys()


def test_summary_refuses_what_it_cannot_measure():
    with pytest.raises(ValueError, match=r"at least 3 images, .* got 2"):
        summary(np.ones((2, 4), np.float32))
    with pytest.raises(ValueError, match="1 of 5 rows"):
        summary(np.array([[1.0, 2.0]] * 4 + [[np.inf, 0.0]], np.float32))

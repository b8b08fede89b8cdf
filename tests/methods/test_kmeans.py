import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans

from ssl_jax.methods.toolkit.kmeans import divide_into_empty, kmeans, nearest, sizes_of

RNG = jax.random.key(0)


def draw(points=300, dim=5, centers=6, noise=0.5, seed=0):
    """Overlapping clusters away from the origin, of unequal lengths."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(centers, dim)) + 1.0
    x = means[rng.integers(0, centers, points)] + noise * rng.normal(size=(points, dim))
    return (x * rng.uniform(0.3, 3.0, (points, 1))).astype(np.float32)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def lloyd(x, centroids, iterations, spherical):
    """In float64, cluster by cluster."""
    x, centroids = (a.astype(np.float64) for a in (x, centroids))
    if spherical:
        x, centroids = unit(x), unit(centroids)

    def assign():
        return np.array([np.argmin([np.sum((p - c) ** 2) for c in centroids]) for p in x])

    for _ in range(iterations):
        labels = assign()
        for k in range(len(centroids)):
            if np.any(labels == k):
                centroids[k] = x[labels == k].mean(axis=0)
        if spherical:
            centroids = unit(centroids)
    return centroids, assign()


@pytest.mark.parametrize("spherical", [True, False])
def test_equals_lloyd_from_the_same_start(spherical):
    x = draw()
    start = x[:6].copy()
    start[5] = -start[5] * 100  # far from all points: its cluster stays empty
    cases = [(0, 7), (1, 300), (4, 7), (4, 4096)]  # moves, and points a block

    @jax.jit
    def run(x, start):
        options = dict(spherical=spherical, init=start)
        return [kmeans(RNG, x, 6, iterations=moves, block_size=block, **options) for moves, block in cases]

    for (moves, _), (centroids, assignments) in zip(cases, run(x, start), strict=True):
        expected, labels = lloyd(x, start, moves, spherical)
        assert 5 not in labels and len(set(labels)) == 5
        assert centroids.dtype == jnp.float32 and jnp.issubdtype(assignments.dtype, jnp.integer)
        np.testing.assert_allclose(centroids, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(assignments, labels)


def test_converges_where_scikit_learn_does():
    x = draw(noise=0.3)
    reference = KMeans(6, init=x[:6].astype(np.float64), n_init=1, max_iter=100, tol=0, algorithm="lloyd").fit(x)
    assert 1 < reference.n_iter_ < 50
    centroids, assignments = kmeans(RNG, x, 6, iterations=50, spherical=False, init=x[:6])
    np.testing.assert_allclose(centroids, reference.cluster_centers_, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(assignments, reference.labels_)


@pytest.mark.parametrize("spherical", [True, False])
def test_rows_that_are_not_valid_do_not_count(spherical):
    x = draw()
    valid = np.arange(300) % 3 != 0
    expected, labels = lloyd(x[valid], x[1:4], 5, spherical)
    start = x[1:4].copy()
    x[~valid] = [1e6, 0, 0, 0, 0]  # would carry a centroid away
    found = kmeans(RNG, x, 3, iterations=5, spherical=spherical, valid=valid, init=start)
    centroids, assignments = jax.device_get(found)
    np.testing.assert_allclose(centroids, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(assignments[valid], labels)
    assert np.all(assignments[~valid] == -1)


def test_starts_from_distinct_valid_points():
    x = draw(points=40)
    valid = np.arange(40) < 25
    seen = set()
    for seed in range(20):
        centroids, assignments = kmeans(jax.random.key(seed), x, 20, iterations=0, spherical=False, valid=valid)
        rows = [int(np.flatnonzero(np.all(x == c, axis=1))[0]) for c in np.asarray(centroids)]
        assert len(set(rows)) == 20 and max(rows) < 25
        np.testing.assert_array_equal(np.asarray(assignments)[rows], np.arange(20))
        seen |= set(rows)
    assert seen == set(range(25))  # a start that is never drawn: chance (1/5)^20 each


def test_fewer_valid_points_than_clusters():
    x = draw(points=20)
    valid = np.arange(20) < 3
    centroids, assignments = jax.device_get(kmeans(RNG, x, 8, iterations=4, valid=valid))
    assert len(set(assignments[:3])) == 3  # each its own
    copies = centroids @ unit(x[:3]).T  # all centroids are these three, none a point that does not count
    np.testing.assert_allclose(np.max(copies, axis=1), np.ones(8), rtol=1e-6)
    np.testing.assert_allclose(copies[assignments[:3], range(3)], np.ones(3), rtol=1e-6)


@pytest.mark.parametrize("spherical", [True, False])
def test_no_array_of_all_distances(spherical):
    points, k = 8192, 512
    x = jax.ShapeDtypeStruct((points, 8), jnp.float32)
    compiled = kmeans.lower(RNG, x, k, iterations=3, spherical=spherical, block_size=256).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * points * k / 4


def test_bfloat16_is_computed_in_float32():
    x = draw().astype(jnp.bfloat16)
    wide = x.astype(np.float32)
    centroids, assignments = kmeans(RNG, x, 4, iterations=3, init=x[:4])
    expected, labels = kmeans(RNG, wide, 4, iterations=3, init=wide[:4])
    np.testing.assert_array_equal(centroids, expected)
    np.testing.assert_array_equal(assignments, labels)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "points, k, options, message",
    [
        ((4, 3), 5, {}, "5 clusters"),
        ((4, 3), 0, {}, "0 clusters"),
        ((4,), 2, {}, "points"),
        ((4, 3), 2, {"init": np.ones((2, 4), np.float32)}, "init"),
        ((4, 3), 2, {"valid": np.ones(3, bool)}, "valid"),
    ],
)
def test_refusals(points, k, options, message):
    with pytest.raises(ValueError, match=message):
        kmeans(RNG, np.ones(points, np.float32), k, iterations=1, **options)


def test_nearest_is_the_least_distance_and_the_first_of_equals():
    x = draw(points=50)
    centroids = np.concatenate([x[:4], x[:4]])
    expected = np.argmin(np.sum((x[:, None] - centroids[:4]) ** 2, axis=-1), axis=1)
    run = jax.jit(lambda *arrays: [nearest(*arrays, block_size=block_size) for block_size in (7, 4096)])
    for found in run(x, centroids):
        np.testing.assert_array_equal(found, expected)


def test_empty_clusters_take_half_of_large_ones():
    """Six bundles, and all first centroids in one of them, or far away from all: without `divide` they stay empty."""
    rng = np.random.default_rng(0)
    bundles = np.repeat(10.0 * np.eye(6), 20, axis=0) + 0.1 * rng.normal(size=(120, 6))
    start = np.concatenate([bundles[:1], np.full((7, 6), -1e3)]).astype(np.float32)

    @jax.jit
    def run(x, start):
        options = dict(iterations=30, spherical=False, init=start)
        return [kmeans(RNG, x, 8, **options, divide=divide) for divide in (False, True)]

    (_, without), (centroids, labels) = jax.device_get(run(bundles, start))
    assert set(without) == {0}
    assert set(labels) == set(range(8))
    for k in range(8):
        np.testing.assert_allclose(centroids[k], bundles[labels == k].mean(axis=0), rtol=1e-3, atol=1e-3)


def test_divided_clusters_are_drawn_by_size_and_move_apart():
    centroids = jnp.arange(1.0, 13.0).reshape(4, 3)
    sizes = jnp.array([1.0, 0.0, 40.0, 1.0])  # a cluster of one member cannot be divided
    divided = divide_into_empty(RNG, centroids, sizes)
    apart = np.array([1.0, -1.0, 1.0]) / 1024
    expected = np.array(centroids)
    expected[1], expected[2] = expected[2] * (1 + apart), expected[2] * (1 - apart)
    np.testing.assert_allclose(divided, expected, rtol=1e-6)
    several = divide_into_empty(RNG, centroids, jnp.array([1.0, 0.0, 40.0, 0.0]))
    assert len({tuple(row) for row in several.tolist()}) == 4
    np.testing.assert_allclose(several[1:], np.broadcast_to(centroids[2], (3, 3)), rtol=3e-3)


def test_sizes_leave_out_points_of_no_cluster():
    np.testing.assert_array_equal(sizes_of(jnp.array([2, -1, 0, 2, -1]), 4), [1, 0, 2, 0])

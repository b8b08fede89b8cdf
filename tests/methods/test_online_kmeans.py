import functools

import jax
import numpy as np
import pytest

from ssl_jax.methods.toolkit import online_kmeans

K, DIM, BATCH = 4, 3, 10


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def draw(number):
    return unit(np.random.default_rng(number).normal((2.0, 0.0, 0.0), size=(BATCH, DIM))).astype(np.float32)


def reference(centers, batches, rate, bound):
    """(labels of each batch, centers, duals), one row after the other, in float64."""
    moving, duals, members, found = centers.astype(np.float64), np.zeros(K), [[] for _ in range(K)], []
    for z in batches:
        labels = [int(np.argmax(moving @ row + duals)) for row in z.astype(np.float64)]
        for k in range(K):
            new = [row for row, label in zip(z, labels, strict=True) if label == k]
            duals[k] += rate * (bound / K - len(new) / BATCH)
            if new:
                # The authors keep the mean as a unit vector, so later batches are averaged with that.
                moving[k] = unit((moving[k] * len(members[k]) + np.sum(new, axis=0)) / (len(members[k]) + len(new)))
                members[k] += new
        if bound < 1.0:
            duals = np.maximum(duals, 0.0)
        found.append(labels)
    return found, moving, duals


@pytest.mark.parametrize("bound", [0.0, 0.5, 1.0])
def test_labels_centers_and_duals_are_those_of_one_row_after_the_other(bound):
    first = clusters = online_kmeans.create(jax.random.key(0), K, DIM)
    move = jax.jit(functools.partial(online_kmeans.move, rate=2.0, bound=bound))
    found = []
    for number in range(5):
        labels = online_kmeans.assign(clusters, jax.numpy.asarray(draw(number)))
        clusters = move(clusters, jax.numpy.asarray(draw(number)), labels)
        found.append(labels.tolist())
    labels, centers, duals = reference(np.asarray(first["moving"]), map(draw, range(5)), 2.0, bound)
    assert found == labels
    np.testing.assert_allclose(clusters["moving"], centers, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(clusters["duals"], duals, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(clusters["centers"], first["centers"])
    np.testing.assert_array_equal(clusters["counts"], np.bincount(np.concatenate(found), minlength=K))
    turned = online_kmeans.next_epoch(clusters)
    np.testing.assert_array_equal(turned["centers"], clusters["moving"])
    np.testing.assert_array_equal(turned["counts"], np.zeros(K))


def test_the_bound_fills_clusters_that_would_be_empty():
    """All rows around one direction: without a bound one cluster takes nearly all."""
    shares = {}
    for bound in (0.0, 0.8):
        clusters = online_kmeans.create(jax.random.key(0), K, DIM)
        step = jax.jit(functools.partial(online_kmeans.move, rate=0.2, bound=bound))
        counts = np.zeros(K)
        for number in range(60):
            z = jax.numpy.asarray(unit(0.1 * draw(number) + np.float32([1.0, 0.0, 0.0])))
            labels = online_kmeans.assign(clusters, z)
            clusters = step(clusters, z, labels)
            counts += np.bincount(labels, minlength=K) * (number >= 20)
        shares[bound] = counts.min() / counts.sum()
    assert shares[0.0] < 0.02
    assert shares[0.8] > 0.7 * 0.8 / K

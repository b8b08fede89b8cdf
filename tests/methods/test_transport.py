import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import losses
from ssl_jax.methods.toolkit.transport import balanced_labels, label

OPTIONS = {"temperature": 0.1, "strength": 10.0}


def draw(points=60, k=4, dim=5):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(points, dim)) + 0.5
    prototypes = rng.normal(size=(k, dim))
    return tuple((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (z, prototypes))


def selas_labels(z, prototypes, iterations, tolerance=0.0):
    """(labels, log r) of the authors' loop, in float64, with the tolerance looked at after each iteration."""
    logits = z.astype(np.float64) @ prototypes.T / OPTIONS["temperature"]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    p = p ** OPTIONS["strength"]
    c = np.ones(len(z))
    for _ in range(iterations):
        r = len(z) / p.shape[1] / (p.T @ c)
        old, c = c, 1.0 / (p @ r)
        if np.sum(np.abs(old / c - 1)) < tolerance:
            break
    return np.argmax(p * r, axis=1), np.log(r)


def test_equals_the_authors_loop():
    z, prototypes = draw()
    labels, log_r = balanced_labels(z, prototypes, iterations=1, tolerance=0.0, block_size=7, **OPTIONS)
    expected = selas_labels(z, prototypes, 1)
    np.testing.assert_array_equal(labels, expected[0])
    np.testing.assert_allclose(log_r, expected[1], rtol=1e-4, atol=1e-4)


def test_a_bias_is_a_column_of_ones_more():
    z, prototypes = draw()
    bias = np.linspace(-0.2, 0.3, 4, dtype=np.float32)
    options = dict(iterations=20, tolerance=0.0, **OPTIONS)
    labels, log_r = balanced_labels(z, prototypes, bias=bias, **options)
    more = [
        np.concatenate([x, column], axis=1) for x, column in ((z, np.ones_like(z[:, :1])), (prototypes, bias[:, None]))
    ]
    expected, expected_log_r = balanced_labels(*more, **options)
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_allclose(log_r, expected_log_r, rtol=1e-4, atol=1e-4)
    assert np.any(labels != balanced_labels(z, prototypes, **options)[0])


def test_many_iterations_balance_labels_where_the_nearest_prototypes_do_not():
    z, prototypes = draw(points=400)
    nearest = np.bincount(np.argmax(z @ prototypes.T, axis=1), minlength=4)
    labels, _ = balanced_labels(z, prototypes, iterations=200, tolerance=0.0, **OPTIONS)
    sizes = np.bincount(labels, minlength=4)
    assert nearest.max() > 140 and sizes.max() <= 105 and sizes.min() >= 95
    np.testing.assert_array_equal(labels, selas_labels(z, prototypes, 200)[0])
    # As Sinkhorn's of the log probabilities.
    scores = z.astype(np.float64) @ prototypes.T / 0.1
    log_p = scores - np.log(np.sum(np.exp(scores), axis=1, keepdims=True))
    codes = losses.sinkhorn(log_p.astype(np.float32), epsilon=0.1, iterations=200)
    np.testing.assert_array_equal(labels, np.argmax(np.asarray(codes), axis=1))


def test_stops_at_the_tolerance():
    z, prototypes = draw()
    expected = selas_labels(z, prototypes, 100, tolerance=40.0)[0]
    assert np.any(expected != selas_labels(z, prototypes, 100)[0])
    labels, _ = balanced_labels(z, prototypes, iterations=100, tolerance=40.0, **OPTIONS)
    np.testing.assert_array_equal(labels, expected)


def test_points_that_are_not_valid_do_not_count_and_get_their_label_afterwards():
    z, prototypes = draw()
    valid = np.arange(60) % 3 != 0
    expected, expected_log_r = selas_labels(z[valid], prototypes, 20)
    found = balanced_labels(z, prototypes, iterations=20, tolerance=0.0, valid=valid, block_size=16, **OPTIONS)
    labels, log_r = jax.device_get(found)
    np.testing.assert_array_equal(labels[valid], expected)
    np.testing.assert_allclose(log_r, expected_log_r, rtol=1e-4, atol=1e-4)
    assert np.all(labels[~valid] == -1)
    of_new = jax.jit(lambda *arrays: label(*arrays, **OPTIONS))(z[valid], prototypes, log_r)
    np.testing.assert_array_equal(of_new, expected)


def test_no_array_of_all_scores():
    points, k = 8192, 512
    x, prototypes = (jax.ShapeDtypeStruct((n, 8), jnp.float32) for n in (points, k))
    compiled = balanced_labels.lower(x, prototypes, iterations=3, block_size=256).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * points * k / 4


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "shapes, options, message",
    [
        (((4, 3), (2, 4)), {}, "one dim"),
        (((4, 3), (2, 3)), {"valid": np.ones(3, bool)}, "valid"),
        (((4, 3), (2, 3)), {"iterations": 0}, "iterations"),
        (((4, 3), (2, 3)), {"bias": np.ones(3)}, "bias"),
    ],
)
def test_refusals(shapes, options, message):
    with pytest.raises(ValueError, match=message):
        balanced_labels(*map(np.ones, shapes), **options)

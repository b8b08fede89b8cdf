import numpy as np
import pytest

from ssl_jax.evaluation.clid import clid, cluster_learnability


def blobs(*, blobs=8, images=400, dim=10, spread=0.05):
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(blobs, dim))
    return (np.repeat(centers, images // blobs, axis=0) + spread * rng.normal(size=(images, dim))).astype(np.float32)


def test_learnability_of_clear_clusters_and_of_noise():
    assert cluster_learnability(blobs(), clusters=8) == 100.0
    noise = np.random.default_rng(1).normal(size=(400, 200)).astype(np.float32)
    # k-means cuts a Gaussian into parts whose rows have, in 200 dimensions, neighbors of all of them.
    assert 100 / 8 < cluster_learnability(noise, clusters=8) < 60


def test_learnability_asks_for_rows_that_the_bank_does_not_hold():
    """Each row its own cluster: none of the others has its label."""
    assert cluster_learnability(blobs(images=40), clusters=40) == 0.0


def test_learnability_is_a_function_of_its_seed():
    h = np.random.default_rng(2).normal(size=(300, 5)).astype(np.float32)
    values = [cluster_learnability(h, clusters=10, seed=seed) for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize("clusters", [1, 401])
def test_learnability_refuses_a_number_of_clusters_out_of_range(clusters):
    with pytest.raises(ValueError, match=rf"2 \.\. 400.*got {clusters}"):
        cluster_learnability(blobs(), clusters=clusters)


def test_learnability_refuses_features_that_are_not_finite():
    h = blobs()
    h[3, 0] = np.nan
    with pytest.raises(ValueError, match="1 of 400 rows"):
        cluster_learnability(h, clusters=8)


def test_clid_adds_what_was_scaled_over_the_models():
    np.testing.assert_allclose(clid([60.0, 80.0, 70.0], [10.0, 10.0, 12.0]), [0.0, 1.0, 1.5])
    np.testing.assert_allclose(clid([60.0, 80.0], [12.0, 10.0]), [1.0, 1.0])  # another set of models, other values


@pytest.mark.parametrize(
    "learnabilities, dimensions, message",
    [
        ([60.0], [10.0], "at least two models, got 1"),
        ([60.0, 70.0], [10.0], "2 learnabilities, 1 dimensions"),
        ([60.0, 70.0], [10.0, float("nan")], "finite"),
    ],
)
def test_clid_refuses_what_is_no_set_of_models(learnabilities, dimensions, message):
    with pytest.raises(ValueError, match=message):
        clid(learnabilities, dimensions)

import jax
import numpy as np
import pytest

from ssl_jax.methods.toolkit import colors
from ssl_jax.methods.toolkit.colors import BINS


def test_bins_are_the_released_313():
    assert BINS.shape == (313, 2) and len(np.unique(BINS, axis=0)) == 313
    assert np.all(BINS % 10 == 0)
    np.testing.assert_array_equal([BINS.min(axis=0), BINS.max(axis=0)], [[-90, -110], [100, 100]])
    assert np.any(np.all(BINS == 0, axis=1))


def test_soft_targets_are_gaussians_of_the_ten_nearest_bins():
    given = np.random.default_rng(0).uniform(-120, 120, (50, 2)).astype(np.float32)  # outside of the bins, too
    targets = np.asarray(jax.jit(colors.encode)(given))
    for color, target in zip(given.astype(np.float64), targets, strict=True):
        distance = np.linalg.norm(BINS - color, axis=1)
        nearest = np.argsort(distance)[:10]
        share = np.exp(-(distance[nearest] ** 2) / 50)
        expected = np.zeros(313)
        expected[nearest] = share / share.sum()
        np.testing.assert_allclose(target, expected, atol=1e-5)


def test_prior_is_the_mean_over_batches_of_images_that_count():
    rng = np.random.default_rng(0)
    batches = [rng.dirichlet(np.ones(313), size=(4, 2, 3)).astype(np.float32) for _ in range(3)]
    counted = [np.array(c) for c in ([1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 1, 0])]
    prior, update = colors.first_prior(), jax.jit(lambda *given: colors.update_prior(*given, None))
    for targets, of_batch in zip(batches, counted, strict=True):
        prior = update(prior, targets, of_batch.astype(bool))
    whole, of_whole = np.concatenate(batches), np.concatenate(counted).astype(bool)
    np.testing.assert_allclose(prior["mass"], whole[of_whole].sum(axis=(0, 1, 2)) / (12 * 6), rtol=1e-5)
    assert prior["batches"] == 3


def test_rarity_is_one_on_average_and_ignores_bins_that_never_occur():
    expected = {
        0.0: [2 / 3, 4 / 3, 4 / 3],  # 1 / p over the number of bins that occur
        # 1 / p' of p' = (5/12, 7/24, 7/24): 2.4, 24/7, 24/7; on average over p 2.4 / 2 + 24 / 14 = 2.9143
        0.5: [0.82353, 1.17647, 1.17647],
        1.0: [1.0, 1.0, 1.0],
    }
    mass = np.zeros(313, np.float32)
    mass[[3, 7, 9]] = 0.4, 0.2, 0.2  # of 80 % of the positions

    @jax.jit
    def run(mass, batches):
        return [colors.rarity({"mass": mass, "batches": batches}, share) for share in expected]

    for weights, of_share in zip(jax.device_get(run(mass, 1)), expected.values(), strict=True):
        np.testing.assert_allclose(weights[[3, 7, 9]], of_share, rtol=1e-4)
        assert np.sum(weights != 0) == 3
    assert not np.any(run(*colors.first_prior().values()))  # and no NaN


def test_annealed_mean_goes_from_the_mean_to_the_mode():
    i, j = (int(np.flatnonzero(np.all(color == BINS, axis=1))[0]) for color in ([0, 0], [50, -20]))
    logits = np.full(313, -1e4, np.float32)
    logits[[i, j]] = np.log([0.75, 0.25])
    mean, annealed = jax.jit(lambda logits: [colors.annealed_mean(logits, t) for t in (1.0, 0.38)])(logits)
    np.testing.assert_allclose(mean, [12.5, -5.0], rtol=1e-4)
    share = 1 / (1 + 3 ** (1 / 0.38))
    np.testing.assert_allclose(annealed, [50 * share, -20 * share], rtol=1e-4)


@pytest.mark.parametrize("size", [(8, 12), (9, 30)])
def test_enlarged_colors_are_those_where_they_were_taken_and_linear_between(size):
    rows, columns = np.meshgrid(*map(np.arange, size), indexing="ij")
    plane = np.stack([2.0 * rows - columns, rows + 3.0 * columns], axis=-1)[None].astype(np.float32)

    @jax.jit
    def run(plane):
        small = colors.subsample(plane)
        return small, colors.enlarge(small, size)

    small, enlarged = jax.device_get(run(plane))
    assert small.shape[1:3] == colors.subsampled_size(size)
    last = [4 * (n - 1) + 1 for n in small.shape[1:3]]  # beyond, the last position's color
    assert enlarged.shape == plane.shape
    np.testing.assert_allclose(enlarged[:, : last[0], : last[1]], plane[:, : last[0], : last[1]], atol=1e-4)
    np.testing.assert_array_equal(enlarged[:, -1], enlarged[:, last[0] - 1])

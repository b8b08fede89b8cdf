import numpy as np
import pytest
from scipy import stats

from ssl_jax.evaluation.comparisons import (
    Difference,
    Prior,
    crossed_bootstrap,
    equivalent,
    holm,
    of_parts,
    rank_correlation,
    seed_prior,
)

RNG = np.random.default_rng(0)
MANY = 20000  # resamples: the error of a standard deviation is then half a percent


def test_over_images_alone_it_is_a_paired_t_test():
    ours, theirs = RNG.random((1, 400)) < 0.8, RNG.random((1, 400)) < 0.7
    expected = stats.ttest_rel(ours[0].astype(float), theirs[0].astype(float))
    found = crossed_bootstrap(ours, theirs, resamples=MANY)
    interval = expected.confidence_interval(0.95)
    np.testing.assert_allclose((found.low, found.high), interval, atol=0.02 * (interval.high - interval.low))
    assert found.mean == pytest.approx(ours.mean() - theirs.mean())
    assert found.p_value == pytest.approx(expected.pvalue, rel=0.2)


def test_over_seeds_alone_it_is_welchs_t_test():
    ours, theirs = np.array([0.71, 0.74, 0.78]), np.array([0.60, 0.61, 0.65, 0.60])
    expected = stats.ttest_ind(ours, theirs, equal_var=False)
    images = np.ones(50)
    found = crossed_bootstrap(np.outer(ours, images), np.outer(theirs, images), resamples=MANY)
    interval = expected.confidence_interval(0.95)
    np.testing.assert_allclose((found.low, found.high), interval, atol=0.02 * (interval.high - interval.low))
    assert found.p_value == pytest.approx(expected.pvalue, rel=0.1)


def test_over_draws_of_labels_alone_it_is_a_paired_t_test():
    ours, theirs = np.array([0.71, 0.74, 0.78, 0.70, 0.75]), np.array([0.66, 0.74, 0.72, 0.69, 0.70])
    expected = stats.ttest_rel(ours, theirs)
    of_images = [np.tile(values[None, :, None], (1, 1, 50)) for values in (ours, theirs)]
    found = crossed_bootstrap(*of_images)
    assert found.mean == pytest.approx(ours.mean() - theirs.mean())
    np.testing.assert_allclose((found.low, found.high), expected.confidence_interval(0.95), rtol=1e-9)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    # One draw says nothing of others, and the mean of draws is what is compared.
    one = crossed_bootstrap(*(values[:, :1] for values in of_images))
    assert (one.low, one.high) == (pytest.approx(0.05), pytest.approx(0.05))


def test_draws_widen_the_interval_of_seeds_and_images():
    ours, theirs = (RNG.random((3, 5, 200)) + RNG.normal(0, 0.02, (3, 1, 1)) for _ in range(2))
    of_draws = RNG.normal(0, 0.3, (1, 5, 1))
    alike = crossed_bootstrap(ours.mean(1), theirs.mean(1))
    found = crossed_bootstrap(ours + of_draws, theirs)
    assert found.high - found.low > 3 * (alike.high - alike.low)
    # What a draw does to both does not count.
    same = crossed_bootstrap(ours + of_draws, theirs + of_draws)
    np.testing.assert_allclose(same, crossed_bootstrap(ours, theirs), rtol=1e-6)


def test_a_difference_of_independent_parts_is_welchs_t_test():
    ours, theirs = np.array([0.71, 0.74, 0.78]), np.array([0.60, 0.61, 0.65, 0.60])
    expected = stats.ttest_ind(ours, theirs, equal_var=False)
    parts = [(values.var(ddof=1) / len(values), len(values) - 1) for values in (ours, theirs)]
    found = of_parts(ours.mean() - theirs.mean(), parts)
    np.testing.assert_allclose((found.low, found.high), expected.confidence_interval(0.95), rtol=1e-9)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    assert of_parts(0.1, [(0.0, 2)]) == (0.1, 0.1, 0.1, 0)


def test_a_prior_draws_the_variance_over_seeds_to_it():
    ours, theirs = np.array([0.71, 0.74, 0.78]), np.array([0.60, 0.61, 0.65, 0.60])
    of_images = [np.outer(values, np.ones(50)) for values in (ours, theirs)]
    known = Prior(0.03**2, 1e9)  # then it is a z test
    found = crossed_bootstrap(*of_images, priors=(known, known))
    half = stats.norm.ppf(0.975) * 0.03 * np.sqrt(1 / 3 + 1 / 4)
    mean = ours.mean() - theirs.mean()
    np.testing.assert_allclose((found.low, found.high), (mean - half, mean + half), rtol=0.05)
    # As much as four more seeds: by hand, with the other side's own variance. Satterthwaite's freedom would be above 6.
    found = crossed_bootstrap(*of_images, priors=(Prior(0.03**2, 4), None), resamples=MANY)
    first, second = (4 * 0.03**2 + 2 * ours.var(ddof=1)) / 6 / 3, theirs.var(ddof=1) / 4
    assert (first + second) ** 2 / (first**2 / 6 + second**2 / 3) > 6
    half = stats.t.ppf(0.975, 6) * np.sqrt(first + second)
    np.testing.assert_allclose((found.low, found.high), (mean - half, mean + half), rtol=0.01)


def test_the_prior_of_many_methods_is_found():
    rng = np.random.default_rng(2)
    true = 0.5**2 * 3 / rng.chisquare(3, 20000)  # scaled inverse chi-squared, of 3 degrees of freedom
    found = seed_prior(true * rng.chisquare(2, 20000) / 2, 2)
    assert found.variance == pytest.approx(0.25, rel=0.05) and found.freedom == pytest.approx(3, rel=0.1)
    alike = seed_prior(0.25 * rng.chisquare(2, 20000) / 2, 2)
    assert alike.variance == pytest.approx(0.25, rel=0.05) and alike.freedom == 4  # twice a method's own
    assert seed_prior([0.25] * 5, 2).freedom == 4  # less spread than chance makes
    assert seed_prior([0.0, *true[:9]], 2) == seed_prior(true[:9], 2)


@pytest.mark.parametrize(
    "variances, freedom, message",
    [
        ([0.1, 0.2, 0.0], 2, "2 variances above 0 are too few"),
        ([0.1, 0.2, -0.1], 2, "finite and not negative"),
        ([0.1, 0.2, np.nan], 2, "finite and not negative"),
        ([0.1, 0.2, 0.3], 0, "freedom must be at least 1, got 0"),
    ],
)
def test_a_prior_needs_methods_with_seeds(variances, freedom, message):
    with pytest.raises(ValueError, match=message):
        seed_prior(variances, freedom)


def test_images_are_paired():
    hard = RNG.random(1000) < 0.5
    ours, theirs = np.tile(hard, (2, 1)), np.tile(hard, (2, 1))
    ours[:, 0], theirs[:, 0] = True, False  # one image in a thousand tells them apart
    found = crossed_bootstrap(ours, theirs)
    assert found.mean == pytest.approx(0.001) and found.high < 0.004
    apart = crossed_bootstrap(ours, RNG.permuted(theirs, axis=1))
    assert apart.high - apart.low > 10 * (found.high - found.low)


def test_images_of_a_group_count_as_one():
    ours, theirs = RNG.random((1, 150)) < 0.8, RNG.random((1, 150)) < 0.7
    once = crossed_bootstrap(ours, theirs)
    repeated = [np.repeat(values, 5, axis=1) for values in (ours, theirs)]
    np.testing.assert_allclose(crossed_bootstrap(*repeated, groups=np.repeat(np.arange(150), 5)), once, rtol=1e-9)
    alone = crossed_bootstrap(*repeated)
    assert alone.high - alone.low < 0.6 * (once.high - once.low)


@pytest.mark.parametrize("of_seeds, of_images", [(0.02, 0.5), (0.1, 0.0), (0.0, 0.5)])
def test_the_interval_holds_the_difference_as_often_as_it_says(of_seeds, of_images):
    """Three seeds a method. 95 % of 300 lie within 3 * 1.3 points; that too many hold it does no harm."""
    rng, held = np.random.default_rng(1), 0
    for _ in range(300):
        images = rng.normal(0, of_images, 200)
        ours, theirs = (
            mean + images + of_seeds * rng.normal(size=(3, 1)) + 0.3 * of_images * rng.normal(size=(3, 200))
            for mean in (0.1, 0.0)
        )
        found = crossed_bootstrap(ours, theirs, resamples=100)
        held += found.low <= 0.1 <= found.high
    assert held / 300 >= 0.91


def test_it_depends_on_the_seed_alone_and_not_on_its_chunks(monkeypatch):
    ours, theirs = RNG.random((3, 90)), RNG.random((2, 90))
    whole = crossed_bootstrap(ours, theirs, seed=3)
    assert crossed_bootstrap(ours, theirs, seed=4) != whole
    monkeypatch.setattr("ssl_jax.evaluation.comparisons.INDICES", 7 * 90)
    np.testing.assert_allclose(crossed_bootstrap(ours, theirs, seed=3), whole, rtol=1e-9)


def test_what_is_the_same_has_no_difference():
    same = np.tile(RNG.random(20) < 0.5, (3, 1))
    assert crossed_bootstrap(same, same) == (0, 0, 0, 1)
    assert crossed_bootstrap(np.ones((1, 9)), np.zeros((1, 9))) == (1, 1, 1, 0)


@pytest.mark.parametrize(
    "ours, theirs, options, message",
    [
        (np.ones(5), np.ones((1, 5)), {}, r"ours must be \[seeds, images\] or \[seeds, draws, images\], got \[5\]"),
        (np.ones((1, 5)), np.ones((1, 4)), {}, "ours has 1 draws of 5 images and theirs 1 of 4"),
        (np.ones((1, 3, 5)), np.ones((1, 2, 5)), {}, "ours has 3 draws of 5 images and theirs 2 of 5"),
        (np.ones((1, 5)), np.full((1, 5), np.nan), {}, "5 of 5 values of theirs are not finite"),
        (np.ones((1, 5)), np.ones((1, 5)), {"level": 95}, r"level must be in \(0, 1\), got 95"),
        (np.ones((1, 5)), np.ones((1, 5)), {"resamples": 9}, "give at least 100"),
        (np.ones((1, 5)), np.ones((1, 5)), {"groups": np.zeros(4)}, "5 images need as many groups"),
        (np.ones((1, 5)), np.ones((1, 5)), {"groups": np.zeros(5)}, "all images are of one group"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_errors_name_what_is_wrong(ours, theirs, options, message):
    with pytest.raises(ValueError, match=message):
        crossed_bootstrap(ours, theirs, **options)


def test_holm_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04, times 4, 3, 2, 1: 0.02, 0.03, 0.06, and 0.04, which is not below the one before.
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.6, 0.5]), [1, 1])
    assert holm([]).shape == (0,)
    with pytest.raises(ValueError, match=r"in \[0, 1\], got \[1.5, nan\]"):
        holm([0.5, 1.5, np.nan])


def test_holm_makes_a_false_claim_as_rarely_as_it_says():
    values = np.random.default_rng(0).random((2000, 20))
    any_false = np.mean([holm(row).min() < 0.05 for row in values])
    assert any_false < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)
    assert np.mean(values.min(axis=1) < 0.05) > 0.6  # without it


@pytest.mark.parametrize(
    "low, high, expected", [(-0.9, 0.9, True), (-1.1, 0.5, False), (0.5, 1.5, False), (-1.0, 0.5, False)]
)
def test_equivalence_needs_the_whole_interval_inside(low, high, expected):
    assert equivalent(Difference((low + high) / 2, low, high, 0.5), 1.0) == expected
    with pytest.raises(ValueError, match="margin must be above 0, got 0"):
        equivalent(Difference(0, low, high, 0.5), 0)


def test_rank_correlation_and_its_interval():
    first = np.arange(12.0)
    assert rank_correlation(first, first**3) == (1, 1, 1)
    second = first.copy()
    second[[0, 11]] = second[[11, 0]]
    found = rank_correlation(first, second)
    assert found.value == pytest.approx(1 - 6 * 2 * 11**2 / (12 * (12**2 - 1)))  # Spearman's formula
    # Fisher's z of 0.15385, -+ 1.96 * sqrt((1 + 0.01183) / 9).
    np.testing.assert_allclose(
        (found.low, found.high), (np.tanh(0.15508 - 0.65716), np.tanh(0.15508 + 0.65716)), atol=1e-4
    )


def test_rank_correlation_holds_the_true_one_as_often_as_it_says():
    rng, true = np.random.default_rng(0), 6 / np.pi * np.arcsin(0.7 / 2)  # of normal values with correlation 0.7
    pairs = rng.multivariate_normal([0, 0], [[1, 0.7], [0.7, 1]], (1000, 30))
    held = np.mean([low <= true <= high for _, low, high in (rank_correlation(*pair.T) for pair in pairs)])
    assert abs(held - 0.95) < 0.03


@pytest.mark.parametrize(
    "first, second, message",
    [
        ([1, 2, 3], [1, 2, 3], "four at least"),
        ([1, 2, 3, 4], [1, 2, 3, 4, 5], "the same methods"),
        ([1, 2, 3, np.nan], [1, 2, 3, 4], "must be finite"),
        ([1, 1, 1, 1], [1, 2, 3, 4], "no ranks"),
    ],
)
def test_ranks_need_methods_and_values(first, second, message):
    with pytest.raises(ValueError, match=message):
        rank_correlation(first, second)

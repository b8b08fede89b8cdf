import numpy as np
import pytest
from scipy import stats

from ssl_jax.evaluation.intervals import bootstrap, student_t


def test_student_t_by_hand():
    found = student_t([1, 2, 3, 4, 5])
    half = 2.7764451051977987 * np.sqrt(2.5 / 5)  # t_4 at 97.5 %, from a table
    np.testing.assert_allclose(found, (3, np.sqrt(2.5), 3 - half, 3 + half))


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_student_t_holds_the_mean_as_often_as_it_says(level):
    draws = np.random.default_rng(0).normal(7, 2, (1000, 4))
    held = np.mean([low <= 7 <= high for _, _, low, high in (student_t(row, level=level) for row in draws)])
    assert abs(held - level) < 3 * np.sqrt(level * (1 - level) / 1000)


def test_one_measurement_has_no_interval():
    found = student_t([4.0])
    assert found.mean == 4
    assert np.isnan(found[1:]).all()


def test_bootstrap_of_hits_is_about_the_binomial_interval():
    hits = np.arange(2000) % 5 > 0
    found = bootstrap(hits, resamples=4000)
    assert found.mean == 0.8
    exact = stats.binom.interval(0.95, 2000, 0.8)
    np.testing.assert_allclose((found.low, found.high), np.array(exact) / 2000, atol=1.5e-3)  # of 4000 resamples


def test_bootstrap_depends_on_the_seed_alone_and_not_on_its_chunks(monkeypatch):
    values = np.random.default_rng(0).normal(size=300)
    whole = bootstrap(values, seed=3)
    monkeypatch.setattr("ssl_jax.evaluation.intervals.INDICES", 7 * 300)
    assert bootstrap(values, seed=3) == whole
    assert bootstrap(values, seed=4) != whole
    shifted = bootstrap(values + 1, seed=3)  # the same resamples
    np.testing.assert_allclose(shifted, np.add(whole, (1, 0, 1, 1)))


@pytest.mark.parametrize("interval", [student_t, bootstrap])
@pytest.mark.parametrize(
    "values, options, message",
    [
        ([], {}, "no values"),
        ([1, np.nan, np.inf], {}, "2 of 3 values are not finite"),
        ([1, 2], {"level": 95}, r"level must be in \(0, 1\), got 95"),
    ],
)
def test_errors_name_what_is_wrong(interval, values, options, message):
    with pytest.raises(ValueError, match=message):
        interval(np.array(values, np.float64), **options)


def test_bootstrap_needs_enough_resamples():
    with pytest.raises(ValueError, match="give at least 100"):
        bootstrap(np.ones(3), level=0.99, resamples=50)

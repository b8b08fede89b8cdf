import numpy as np
import pytest

from ssl_jax.data.mix import Mix


def test_steps_draw_entries_by_their_shares_from_the_seed_and_the_step_alone():
    mix = Mix((0.6, 0.3, 0.1), {"view": (8, 16, 24)})
    drawn = np.array([mix.entry(3, step) for step in range(3000)])
    np.testing.assert_allclose(np.bincount(drawn) / 3000, mix.shares, atol=0.03)
    assert [mix.entry(3, step) for step in (7, 5, 6)] == drawn[[7, 5, 6]].tolist()
    other = np.array([mix.entry(4, step) for step in range(3000)])
    assert 0.3 < np.mean(other == drawn) < 0.6  # 0.46 of independent draws


def test_shares_of_one_or_none_are_kept_to():
    assert {Mix((0.0, 1.0, 0.0), {"view": (1, 2, 3)}).entry(0, step) for step in range(100)} == {1}
    assert {Mix((1.0,), {"view": (8,)}).entry(0, step) for step in range(10)} == {0}


@pytest.mark.parametrize(
    "shares, sides, message",
    [
        ((0.5, 0.4), {"view": (8, 16)}, r"shares must sum to 1, got \(0.5, 0.4\), whose sum is 0.9"),
        ((), {"view": ()}, "shares must sum to 1"),
        ((1.5, -0.5), {"view": (8, 16)}, "each value of shares must be in 0..1"),
        ((0.5, 0.5), {}, "none are given"),
        ((0.5, 0.5), {"view": (8, 16, 24)}, "view must have a side for each of the 2 shares"),
        ((0.5, 0.5), {"view": (8, 0)}, "each value of view must be at least 1"),
    ],
)
def test_refusals(shares, sides, message):
    with pytest.raises(ValueError, match=message):
        Mix(shares, sides)

"""data/order.py: each image once an epoch, no memory, the same numbers everywhere, no pattern."""

import itertools
import math
import time

import numpy as np
import pytest
from scipy import stats

from ssl_jax.data import order
from ssl_jax.data.order import KeyedPermutation, epoch_order


@pytest.mark.parametrize("size", [1, 2, 3, 5, 9, 10, 16, 17, 99, 100, 101, 1023, 2**16, 2**16 + 1, 999_983])
def test_each_image_comes_once(size):
    for epoch in range(3):
        found = KeyedPermutation.of(size, 7, epoch)(np.arange(size))
        assert found.dtype == np.int64
        np.testing.assert_array_equal(np.sort(found), np.arange(size))


def test_below_the_threshold_the_order_is_numpys():
    found = epoch_order(np.arange(50), seed=3, epoch=2, num_images=50)
    np.testing.assert_array_equal(found, np.random.default_rng((3, 2)).permutation(50))


def test_above_the_threshold_each_image_comes_once(monkeypatch):
    monkeypatch.setattr(order, "DRAWN_BELOW", 1000)
    found = np.concatenate(
        [epoch_order(np.arange(k, k + 10), seed=1, epoch=0, num_images=1000) for k in range(0, 1000, 10)]
    )
    np.testing.assert_array_equal(np.sort(found), np.arange(1000))


def plain(position: int, size: int, keys: tuple[int, ...]) -> int:
    """The same network in Python's integers, one position at a time."""
    words, side = 2**64, math.isqrt(size - 1) + 1
    while True:
        high, low = divmod(position, side)
        for key in keys:
            x = ((low + 1) * 0x9E3779B97F4A7C15 + key) % words
            x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % words
            x = (x ^ (x >> 27)) * 0x94D049BB133111EB % words
            high, low = low, (high + (x ^ (x >> 31)) % side) % side
        position = high * side + low
        if position < size:
            return position


@pytest.mark.parametrize("size", [10, 2**31 + 10, 10**9, 2**40 - 3, 2**62])
def test_the_numbers_are_those_of_exact_arithmetic(size):
    places = np.unique(np.linspace(0, size - 1, 20).astype(np.int64).clip(0, size - 1))
    permutation = KeyedPermutation.of(size, 5, 6)
    expected = [plain(int(place), size, tuple(map(int, permutation.keys))) for place in places]
    assert permutation(places).tolist() == expected


def test_the_numbers_stay():
    """A run that goes on after an update of NumPy, or on another machine, needs these."""
    assert KeyedPermutation.of(2**31 + 10, 0, 0)(np.arange(4)).tolist() == [
        1786773645,
        145545540,
        1324074813,
        513856786,
    ]


def test_another_epoch_and_another_seed_have_another_order():
    orders = [epoch_order(np.arange(100), seed=s, epoch=e, num_images=10**9) for s, e in ((0, 0), (0, 1), (1, 0))]
    assert len({tuple(order) for order in orders}) == 3
    assert len(np.unique(np.concatenate(orders))) > 295


@pytest.mark.parametrize("size", [0, -1, 2**62 + 1])
def test_impossible_sizes_are_refused(size):
    with pytest.raises(ValueError, match=f"1 to 2\\^62 images, got {size}"):
        KeyedPermutation.of(size, 0)


def test_pairs_of_positions_are_uniform():
    """Chi-square: over keys, the images at two positions are any of the 90 pairs equally often."""
    size, draws = 10, 30 * 90
    orders = np.array([KeyedPermutation.of(size, 11, key)(np.arange(size)) for key in range(draws)])
    for first, second in itertools.combinations(range(size), 2):
        counts = np.bincount(orders[:, first] * size + orders[:, second], minlength=size**2).reshape(size, size)
        assert not counts.diagonal().any()
        assert stats.chisquare(counts[~np.eye(size, dtype=bool)]).pvalue > 1e-6  # the least of 45


def test_a_large_order_shows_no_pattern():
    """Images, steps between neighbors, and the same positions of two epochs, in 64 equal parts of 10^9 images."""
    size, count = 10**9, 200_000
    one, two = (epoch_order(np.arange(count), seed=2, epoch=epoch, num_images=size) for epoch in (0, 1))
    for values in (one, np.diff(one) % size, (two - one) % size):
        observed = np.bincount(values * 64 // size, minlength=64)
        assert 1e-4 < stats.chisquare(observed).pvalue < 1 - 1e-4
    cells = np.bincount((one[:-1] * 32 // size) * 32 + one[1:] * 32 // size, minlength=32**2)
    assert 1e-4 < stats.chisquare(cells).pvalue < 1 - 1e-4


def test_a_batch_of_any_epoch_takes_no_time():
    begin = time.process_time()
    found = epoch_order(np.arange(10**12, 10**12 + 4096), seed=0, epoch=999, num_images=2**41)
    assert len(np.unique(found)) == 4096 and time.process_time() - begin < 0.5

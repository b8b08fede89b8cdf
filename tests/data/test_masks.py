import functools

import jax
import numpy as np
import pytest

from ssl_jax.data.masks import Mask, random_masks

SIZE = (56, 40)  # 14 x 10 patches of 4


@functools.cache
def draw(count=400, size=SIZE, **options):
    """bool [count, patches] for options that can be hashed; the same for the same options."""
    mask = Mask(**{"patch_size": 4, "ratio": (0.4, 0.4), **options})
    return np.asarray(_drawn(count, size, mask)(jax.random.key(0)))


@functools.cache
def _drawn(count, size, mask):
    return jax.jit(lambda key: random_masks(jax.random.split(key, count), size, mask))


@pytest.mark.parametrize("kind", ["random", "block", "inverse"])
def test_exactly_the_share_of_patches_is_masked(kind):
    ratios = {"block": (0.0, 0.15, 1.0), "random": (0.0, 0.4, 1.0), "inverse": (0.0, 0.05, 0.65, 0.99, 1.0)}[kind]

    @jax.jit
    def run(key):
        keys = jax.random.split(key, 400)
        return [random_masks(keys, SIZE, Mask(4, kind=kind, ratio=(ratio, ratio))) for ratio in ratios]

    for ratio, masks in zip(ratios, run(jax.random.key(0)), strict=True):
        np.testing.assert_array_equal(np.sum(masks, axis=1), round(140 * ratio))


@pytest.mark.parametrize("options", [dict(kind="block"), dict(kind="inverse"), dict(unit=2), {}])
def test_no_more_patches_are_masked_than_is_said(options):
    mask = Mask(4, ratio=(0.1, 0.37), **options)
    counts = np.asarray(_drawn(300, SIZE, mask)(jax.random.key(0))).sum(axis=1)
    assert 0.9 * mask.most(SIZE) < counts.max() <= mask.most(SIZE) < 60


def test_random_masks_are_uniform_over_patches():
    np.testing.assert_allclose(draw(4000).mean(axis=0), 0.4, atol=0.04)


def test_ratio_is_uniform_and_some_images_are_left_whole():
    counts = draw(4000, ratio=(0.1, 0.5), images=0.5).sum(axis=1)
    np.testing.assert_allclose(np.mean(counts == 0), 0.5, atol=0.03)
    shares = counts[counts > 0] / 140
    assert shares.min() < 0.11 and shares.max() > 0.49
    np.testing.assert_allclose(np.histogram(shares, bins=4, range=(0.1, 0.5))[0] / len(shares), 0.25, atol=0.04)


def neighbors_alike(masks):
    grids = masks.reshape(-1, 14, 10)
    return np.mean(grids[:, :, 1:] == grids[:, :, :-1])


def test_blocks_hang_together():
    # Independent patches of 0.4 agree with their neighbor with probability 0.4^2 + 0.6^2 = 0.52.
    np.testing.assert_allclose(neighbors_alike(draw(4000)), 0.52, atol=0.02)
    assert neighbors_alike(draw(1000, kind="block")) > 0.8


def test_blocks_are_of_the_allowed_size():
    """One rectangle alone: of 12 patches asked for, at least 12 in one."""
    masks = draw(200, kind="block", ratio=(12 / 140, 12 / 140), min_patches=12, aspect=(1.0, 1.0)).reshape(-1, 14, 10)
    whole = 0
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        whole += (np.ptp(rows) + 1, np.ptp(columns) + 1) == (3, 3) or mask[rows[0] :, columns[0] :][:3, :3].sum() == 9
    assert whole > 100  # 3 x 3, and three single patches


def test_units_are_masked_as_one():
    masks = draw(200, size=(48, 32), unit=2, ratio=(0.5, 0.5)).reshape(-1, 6, 2, 4, 2)
    np.testing.assert_array_equal(masks.all(axis=(2, 4)), masks.any(axis=(2, 4)))
    np.testing.assert_array_equal(masks.sum(axis=(1, 2, 3, 4)), 48)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"ratio": (0.5, 0.4)}, r"ratio must be \(least, most\) with least <= most, got \(0.5, 0.4\)"),
        ({"ratio": (0.5, 1.4)}, "ratio must be in 0..1"),
        ({"images": -0.1}, "images must be in 0..1, got -0.1"),
        ({"kind": "blocks"}, "kind must be one of random, block, inverse, got 'blocks'"),
        ({"aspect": (2.0, 1.0)}, "aspect must be"),
        ({"unit": 0}, "unit must be at least 1, got 0"),
        ({"patch_size": 0}, "patch_size must be at least 1, got 0"),
    ],
)
def test_impossible_numbers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Mask(**{"patch_size": 4, "ratio": (0.4, 0.4), **options})


def test_a_view_that_patches_do_not_fill_is_refused():
    with pytest.raises(ValueError, match="30x28"):
        draw(1, size=(30, 28))


def test_inverse_leaves_one_rectangle_that_goes_on_at_the_opposite_edge():
    grids = draw(1000, (56, 56), kind="inverse", ratio=(0.7, 0.7), aspect=(0.5, 2.0)).reshape(-1, 14, 14)
    sides = set()
    for grid in grids:
        seen = ~grid
        # Moved back: the first row and column that are seen come after ones that are not.
        for axis in (0, 1):
            lines = seen.any(axis=1 - axis)
            starts = np.flatnonzero(lines & ~np.roll(lines, 1))
            assert len(starts) <= 1  # in one piece
            seen = np.roll(seen, -int(starts[0]) if len(starts) else 0, axis=axis)
        height, width = seen.any(axis=1).sum(), seen.any(axis=0).sum()
        cut = seen[:height, :width]  # all rows are full, but the last
        assert cut[:-1].all() and cut.sum() == 59 and np.all(np.diff(cut[-1].astype(int)) <= 0)
        sides.add((height, width))
    # sqrt(59 / 2) = 5.4 to sqrt(59 * 2) = 10.9; of 11 rows of 6, the first 10 have the 59 patches
    heights, widths = map(set, zip(*sides, strict=True))
    assert heights == set(range(6, 11)) and widths == set(range(6, 12))
    np.testing.assert_allclose(grids.mean(axis=0), 0.7, atol=0.06)  # no place is seen more than others

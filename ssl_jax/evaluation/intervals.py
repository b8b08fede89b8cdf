"""Means of measurements with their confidence intervals."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

# Indices of resamples that a bootstrap draws at a time: 2^24 are 128 MB.
INDICES = 2**24


class Interval(NamedTuple):
    """A mean and its confidence interval [low, high] at the requested level.

    std: of a single measurement, unbiased.
    """

    mean: float
    std: float
    low: float
    high: float


def student_t(values: Sequence[float] | Float[np.ndarray, "measurements"], *, level: float = 0.95) -> Interval:
    """Mean of independent, roughly normal measurements (one for each seed or episode), by Student's t.

    For a single measurement std, low and high are NaN.

    Args:
      values: finite, at least one.
      level: in (0, 1), the share of such intervals that contain the true mean.

    Raises: ValueError for no values, values that are not finite, a level out of range.
    Source: Student 1908, The probable error of a mean: mean -+ t_{n - 1} std / sqrt(n).
    """
    measured = _checked(values, level)
    mean, count = float(measured.mean()), len(measured)
    if count == 1:
        return Interval(mean, np.nan, np.nan, np.nan)
    std = float(measured.std(ddof=1))
    half = float(stats.t.ppf((1 + level) / 2, count - 1)) * std / math.sqrt(count)
    return Interval(mean, std, mean - half, mean + half)


def bootstrap(
    values: Float[np.ndarray, "images"] | Bool[np.ndarray, "images"],
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Mean over test images, with the interval in which it would lie on other test sets of this size.

    The other test sets are simulated by resampling the images. The interval says nothing about the randomness of
    training: for that, train with several seeds and use `student_t`.

    Args:
      values: one per image, such as whether it was classified correctly; finite.
      level: in (0, 1).
      resamples: how many test sets of the same size are drawn with replacement, at least 1 / (1 - level).
      seed: of the draws, which depend on it and the number of images alone. So methods measured on the same images are
        compared on the same resamples.

    Raises: ValueError for no values, values that are not finite, numbers out of range.
    Source: Efron 1979, Bootstrap methods: percentiles of the resampled means.
    """
    measured = _checked(values, level)
    if resamples * (1 - level) < 1:
        raise ValueError(
            f"resamples={resamples} are too few for the tails at level {level}; give at least {1 / (1 - level):.0f}"
        )
    rng, count = np.random.default_rng(seed), len(measured)
    means = np.empty(resamples)
    rows = max(INDICES // count, 1)
    for start in range(0, resamples, rows):
        drawn = rng.integers(0, count, (min(rows, resamples - start), count))
        means[start : start + rows] = measured[drawn].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    std = float(measured.std(ddof=1)) if count > 1 else np.nan
    return Interval(float(measured.mean()), std, float(low), float(high))


def _checked(values: Sequence[float] | np.ndarray, level: float) -> Float[np.ndarray, "measurements"]:
    measured = np.asarray(values, np.float64)
    if len(measured) == 0:
        raise ValueError("no values: a mean needs at least one")
    if not np.isfinite(measured).all():
        raise ValueError(f"{np.sum(~np.isfinite(measured))} of {len(measured)} values are not finite")
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}; 95 % is 0.95")
    return measured

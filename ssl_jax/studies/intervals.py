"""Statistics of numbers over seeds: means with 95 % intervals, differences in a sentence, and crossings of curves.

A seed is one pre-training with its own label draws. All subjects share the draws, so differences are paired by seed.
The seeds are independent of each other. All intervals are Student's t over the seeds.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from ssl_jax.evaluation.intervals import student_t


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over `seeds` seeds and its 95 % interval, which is infinite for a single seed."""

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval is on that side of 0, else 0."""
        return int(self.low > 0) - int(self.high < 0)

    @property
    def interval(self) -> str:
        if self.seeds == 1:
            return "one seed, which says nothing of its uncertainty"
        return f"95 % interval {self.low:.1f} to {self.high:.1f}, {self.seeds} seeds"


def estimate(values: Float[np.ndarray, " seeds"]) -> Estimate:
    """The mean of one value per seed, all finite, with its interval."""
    found, seeds = student_t(values), len(values)
    if seeds == 1:
        return Estimate(found.mean, -math.inf, math.inf, seeds)
    return Estimate(found.mean, found.low, found.high, seeds)


def compare(
    ours: str,
    theirs: str,
    ours_values: Float[np.ndarray, " seeds"],
    their_values: Float[np.ndarray, " seeds"],
    where: str,
) -> str:
    """A sentence on the difference of two accuracies in percent, paired by seed: clear, reversed or not clear.

    where: ends the sentence's claim, "with 10 labels per class".
    """
    difference = estimate(ours_values - their_values)
    if difference.sign:
        side = "above" if difference.sign > 0 else "below"
        return f"{ours} is {abs(difference.mean):.1f} points {side} {theirs} {where} ({_difference(difference)})."
    return (
        f"Whether {ours} is better than {theirs} {where} does not show at this scale: "
        f"{difference.mean:+.1f} points ({_difference(difference)})."
    )


def _difference(difference: Estimate) -> str:
    return difference.interval.replace("interval", "interval of the difference")


def crossing(x: Float[np.ndarray, " points"], y: Float[np.ndarray, " points"], level: float) -> float:
    """The least x at which the curve through the points reaches `level`; NaN if it never does. x ascends."""
    reached = np.flatnonzero(y >= level)
    if not len(reached):
        return math.nan
    first = int(reached[0])
    if first == 0:
        return float(x[0])
    return float(np.interp(level, y[first - 1 : first + 1], x[first - 1 : first + 1]))


def listed(numbers: Sequence[int]) -> str:
    """ "2, 5 and 10" """
    *rest, last = map(str, numbers)
    return f"{', '.join(rest)} and {last}" if rest else last

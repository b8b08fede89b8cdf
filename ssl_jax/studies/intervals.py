"""Statistics of numbers over seeds: means with 95 % intervals, differences in a sentence, and crossings of curves.

A seed is one pre-training with its own label draws. All subjects share the draws, so differences are paired by seed.
The seeds are independent of each other. All intervals are Student's t over the seeds.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

from ssl_jax.evaluation.comparisons import holm
from ssl_jax.evaluation.intervals import student_t

LEVEL = 0.05  # of all claims of a page together


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


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Of two accuracies in percent, paired by seed. where: ends what is claimed, "with 10 labels per class". p_value:
    of the hypothesis that they do not differ, two-sided, by a t test; 1 for a single seed."""

    ours: str
    theirs: str
    where: str
    difference: Estimate
    p_value: float


def compare(
    ours: str,
    theirs: str,
    ours_values: Float[np.ndarray, " seeds"],
    their_values: Float[np.ndarray, " seeds"],
    where: str,
) -> Comparison:
    """The comparison of two accuracies in percent, of the same seeds in the same order."""
    differences = ours_values - their_values
    return Comparison(ours, theirs, where, estimate(differences), _p_value(differences))


def _p_value(differences: Float[np.ndarray, " seeds"]) -> float:
    seeds = len(differences)
    if seeds == 1:
        return 1.0
    if np.ptp(differences) == 0:
        return float(differences[0] == 0)
    error = float(np.std(differences, ddof=1)) / math.sqrt(seeds)
    return 2 * float(stats.t.sf(abs(float(np.mean(differences))) / error, seeds - 1))


def said(conclusion: Sequence[str | Comparison]) -> list[str]:
    """The sentences of a page. Differences that are claimed hold together at 5 % (Holm)."""
    compared = [part for part in conclusion if isinstance(part, Comparison)]
    corrected = iter(holm([part.p_value for part in compared]).tolist())
    return [
        part if isinstance(part, str) else _sentence(part, next(corrected) < LEVEL, len(compared))
        for part in conclusion
    ]


def _sentence(compared: Comparison, holds: bool, count: int) -> str:
    difference = compared.difference
    interval = difference.interval.replace("interval", "interval of the difference")
    ours, theirs, where = compared.ours, compared.theirs, compared.where
    if not difference.sign:
        return (
            f"Whether {ours} is better than {theirs} {where} does not show at this scale: "
            f"{difference.mean:+.1f} points ({interval})."
        )
    side = "above" if difference.sign > 0 else "below"
    claim = f"{ours} is {abs(difference.mean):.1f} points {side} {theirs} {where} ({interval})"
    return f"{claim}." if holds else f"{claim}, which does not hold for all {count} comparisons of this page together."


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

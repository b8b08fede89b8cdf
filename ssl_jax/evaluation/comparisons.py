"""Comparisons of methods: differences in accuracy over seeds and test images, many claims at once, ranks."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy import optimize, special, stats

from ssl_jax.evaluation.intervals import INDICES


class Difference(NamedTuple):
    """A difference of two mean accuracies, in the unit of what was compared.

    low, high: its confidence interval. p_value: of the hypothesis that the difference is 0, two-sided.
    """

    mean: float
    low: float
    high: float
    p_value: float


class Prior(NamedTuple):
    """What other methods say of a method's variance over seeds: as much as `freedom` more seeds of this variance."""

    variance: float
    freedom: float


class Correlation(NamedTuple):
    """A rank correlation in [-1, 1] with its confidence interval."""

    value: float
    low: float
    high: float


def crossed_bootstrap(
    ours: Float[np.ndarray, "seeds *draws images"] | Bool[np.ndarray, "seeds *draws images"],
    theirs: Float[np.ndarray, "other_seeds *draws images"] | Bool[np.ndarray, "other_seeds *draws images"],
    *,
    groups: Shaped[np.ndarray, " images"] | None = None,
    priors: tuple[Prior | None, Prior | None] = (None, None),
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Difference:
    """The difference of two methods' mean accuracies, for other seeds, other draws of labels and other test images of
    these numbers.

    Each resample draws seeds of each method, independently, and images, the same ones for both. Of n seeds it draws
    n - 1, so that the variance is that of a mean of n: drawn from n, it would be a third too small with three seeds.
    The interval is Student's t with the error of the resamples. Their percentiles would not do: of methods with three
    seeds that differ more than images do, 81 % of such intervals hold the true difference.
    Of a method with one seed, the variance over seeds is not in the interval. Draws are not resampled: the variance of
    the difference over them is added.

    Args:
      ours, theirs: whether each image was right, of each seed, or of each seed and draw of labels; finite. Column k of
        both is the same image, and draw k the same labels. Seeds of the two are not paired.
      groups: of images that are drawn together, as variants of one thing; None: each image by itself.
      priors: of `ours` and `theirs`, from `seed_prior` for methods like these: the variance over seeds is shrunk
        towards it. None: the variance of the side's own seeds, which three that lie close together by chance
        underestimate. Of a side with one seed a prior is not used.
      level: in (0, 1), of the interval.
      resamples: at least 100.
      seed: of the draws, which depend on it and on the numbers of seeds and groups alone.
    Raises: ValueError for other shapes, fewer than two groups, values that are not finite, numbers out of range.
    Source: Owen 2007, arXiv:0712.1111 (The pigeonhole bootstrap); n - 1 draws: Rao and Wu 1988, Resampling inference
      with complex survey data; degrees of freedom: Satterthwaite 1946.
    """
    of_draws = [_checked(name, values) for name, values in (("ours", ours), ("theirs", theirs))]
    if of_draws[0].shape[1:] != of_draws[1].shape[1:]:
        (draws, images), (other_draws, others) = (values.shape[1:] for values in of_draws)
        raise ValueError(
            f"ours has {draws} draws of {images} images and theirs {other_draws} of {others}; give the same of both"
        )
    first, second = (values.mean(axis=1) for values in of_draws)
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}; 95 % is 0.95")
    if resamples < 100:
        raise ValueError(f"resamples={resamples} are too few to estimate an error; give at least 100")
    members = _members(groups, first.shape[1])
    units, seeds, rng = int(members.max()) + 1, len(first), np.random.default_rng(seed)
    if units < 2:
        raise ValueError("all images are of one group; a comparison needs two at least")
    rows = np.concatenate([first, second])
    # The sums over each unit's images, and last the numbers of its images: [units, seeds + other seeds + 1].
    sums = np.stack([np.bincount(members, weights=row, minlength=units) for row in (*rows, np.ones(len(members)))], 1)

    of_images = np.concatenate([_drawn(rng, count, units) @ sums for count in _chunks(resamples, units)])
    accuracies = of_images[:, :-1] / of_images[:, -1:]  # [resamples, seeds + other seeds]
    of_both = (accuracies[:, :seeds], accuracies[:, seeds:])
    resampled = [np.sum(values * _seed_weights(rng, values.shape), axis=1) for values in of_both]
    variance = float(np.var(resampled[0] - resampled[1], ddof=1))

    mean = float(first.mean() - second.mean())
    parts: list[tuple[float, float]] = []
    least = math.inf
    for side, prior in zip((first, second), priors, strict=True):
        if len(side) > 1:
            own = float(side.mean(axis=1).var(ddof=1))
            used, freedom = _moderated(own, len(side) - 1, prior) if prior else (own, len(side) - 1)
            parts.append((used / len(side), freedom))
            variance += (used - own) / len(side)
            least = min(least, freedom) if prior else least
    parts.append((float(np.var(of_both[0].mean(axis=1) - of_both[1].mean(axis=1), ddof=1)), units - 1))
    by_draw = of_draws[0].mean(axis=(0, 2)) - of_draws[1].mean(axis=(0, 2))
    if len(by_draw) > 1:
        of_labels = float(by_draw.var(ddof=1)) / len(by_draw)
        parts.append((of_labels, len(by_draw) - 1))
        variance += of_labels
    if any(priors):  # resampling is off by some percent of the seeds' own variance, which may be more than what is left
        variance = max(variance, sum(part for part, _ in parts))
    # A sum of variances is known at least as well as the least known one. Satterthwaite's estimate may be above what is
    # right, so very small p-values would come up too often (benchmarks/coverage.py).
    return _by_student_t(mean, math.sqrt(variance), min(_satterthwaite(parts), least), level)


def of_parts(mean: float, parts: Sequence[tuple[float, float]], *, level: float = 0.95) -> Difference:
    """A difference whose variance is a sum of independently estimated ones, by Student's t.

    Args:
      parts: (variance of the mean, its degrees of freedom) of each source.
      level: in (0, 1), of the interval.
    Source: Satterthwaite 1946.
    """
    return _by_student_t(mean, math.sqrt(sum(part for part, _ in parts)), _satterthwaite(parts), level)


def seed_prior(variances: Sequence[float] | Float[np.ndarray, " methods"], freedom: int) -> Prior:
    """What methods have in common of their variances over seeds, for `crossed_bootstrap`.

    The methods' true variances are taken to follow a scaled inverse chi-squared distribution, which is fitted to the
    measured ones by the moments of their logarithms. The more alike they are, the larger the prior's freedom. It is at
    most twice that of a method's own seeds: the fit to some tens of methods is uncertain, and with more, very small
    p-values would come up too often.

    Args:
      variances: of the accuracies over each method's seeds, with `ddof=1`; three methods at least. Those of 0 say
        nothing and are left out.
      freedom: the number of each method's seeds less 1, >= 1.
    Raises: ValueError for fewer variances above 0, negative or not finite ones, freedom below 1.
    Source: Smyth 2004, Linear models and empirical Bayes methods for assessing differential expression in microarray
      experiments, section 6.2.
    """
    given = np.asarray(variances, np.float64)
    if not (np.isfinite(given).all() and (given >= 0).all()):
        raise ValueError("variances must be finite and not negative")
    if freedom < 1:
        raise ValueError(f"freedom must be at least 1, got {freedom}; it is the number of seeds less 1")
    given = given[given > 0]
    if len(given) < 3:
        raise ValueError(f"{len(given)} variances above 0 are too few; a prior needs three methods at least")
    logs = np.log(given) - special.digamma(freedom / 2) + math.log(freedom / 2)
    excess = float(logs.var(ddof=1) - special.polygamma(1, freedom / 2))
    most = 2.0 * freedom
    if excess <= 0:  # no more spread than chance makes of equal variances
        return Prior(math.exp(logs.mean()), most)
    root: Any = optimize.brentq(lambda x: special.polygamma(1, x) - excess, 1e-3, 1e8)
    half = float(root)
    variance = math.exp(logs.mean() + float(special.digamma(half)) - math.log(half))
    return Prior(variance, min(2 * half, most))


def holm(p_values: Sequence[float] | Float[np.ndarray, " claims"]) -> Float[np.ndarray, " claims"]:
    """The p-values of claims that are made together, corrected for their number.

    If those below 0.05 are claimed, at most one page in twenty has any false claim. At most 1, in the order given.

    Raises: ValueError for values outside of [0, 1].
    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    given = np.asarray(p_values, np.float64)
    if not ((given >= 0) & (given <= 1)).all():  # also of NaN
        raise ValueError(f"p-values must be in [0, 1], got {given[~((given >= 0) & (given <= 1))].tolist()}")
    order = np.argsort(given, kind="stable")
    corrected = np.minimum(np.maximum.accumulate(given[order] * np.arange(len(given), 0, -1)), 1.0)
    found = np.empty_like(given)
    found[order] = corrected
    return found


def equivalent(difference: Difference, margin: float) -> bool:
    """Whether the whole interval is inside -margin .. margin: then the difference is shown to be smaller than that.

    With an interval at 90 % this is the test of two one-sided hypotheses at 5 %; at 95 % it is stricter.

    Args:
      margin: the largest difference that does not matter, > 0, in the difference's unit; stated beforehand.
    Raises: ValueError for a margin that is not above 0.
    Source: Schuirmann 1987, A comparison of the two one-sided tests procedure.
    """
    if not margin > 0:
        raise ValueError(f"margin must be above 0, got {margin}; it is the largest difference that does not matter")
    return -margin < difference.low and difference.high < margin


def rank_correlation(
    first: Sequence[float] | Float[np.ndarray, " methods"],
    second: Sequence[float] | Float[np.ndarray, " methods"],
    *,
    level: float = 0.95,
) -> Correlation:
    """Spearman's correlation of two tables of the same methods, for other methods like these.

    Args:
      first, second: one number for each method, in the same order; finite; four methods at least.
      level: in (0, 1).
    Raises: ValueError for fewer or other numbers of methods, values that are not finite, and equal values only.
    Source: interval: Bonett and Wright 2000, Sample size requirements for estimating Pearson, Kendall and Spearman
      correlations: Fisher's z with variance (1 + r^2 / 2) / (methods - 3).
    """
    ours, theirs = (np.asarray(values, np.float64) for values in (first, second))
    if ours.shape != theirs.shape or ours.ndim != 1 or len(ours) < 4:
        raise ValueError(f"both need the same methods, four at least; got {list(ours.shape)} and {list(theirs.shape)}")
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        raise ValueError("values of methods must be finite; leave out methods that have none")
    if np.ptp(ours) == 0 or np.ptp(theirs) == 0:
        raise ValueError("all methods have the same value, so they have no ranks")
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}; 95 % is 0.95")
    value = float(np.corrcoef(stats.rankdata(ours), stats.rankdata(theirs))[0, 1])
    if abs(value) > 1 - 1e-12:
        return Correlation(value, value, value)
    half = float(stats.norm.ppf((1 + level) / 2)) * math.sqrt((1 + value**2 / 2) / (len(ours) - 3))
    return Correlation(value, math.tanh(math.atanh(value) - half), math.tanh(math.atanh(value) + half))


def _by_student_t(mean: float, error: float, freedom: float, level: float) -> Difference:
    if error == 0:
        return Difference(mean, mean, mean, float(mean == 0))
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * error
    return Difference(mean, mean - half, mean + half, 2 * float(stats.t.sf(abs(mean) / error, freedom)))


def _moderated(own: float, freedom: int, prior: Prior) -> tuple[float, float]:
    """(variance, its degrees of freedom) over the seeds of a method."""
    both = prior.freedom + freedom
    return (prior.freedom * prior.variance + freedom * own) / both, both


def _checked(name: str, values: np.ndarray) -> Float[np.ndarray, "seeds draws images"]:
    found = np.asarray(values, np.float64)
    if found.ndim not in (2, 3) or found.size == 0:
        raise ValueError(f"{name} must be [seeds, images] or [seeds, draws, images], got {list(found.shape)}")
    if not np.isfinite(found).all():
        raise ValueError(f"{np.sum(~np.isfinite(found))} of {found.size} values of {name} are not finite")
    return found if found.ndim == 3 else found[:, None]


def _members(groups: np.ndarray | None, count: int) -> np.ndarray:
    """The unit of each image: 0 .. units - 1."""
    if groups is None:
        return np.arange(count)
    if groups.shape != (count,):
        raise ValueError(f"{count} images need as many groups, got {list(groups.shape)}")
    return np.unique(groups, return_inverse=True)[1]


def _chunks(resamples: int, units: int) -> list[int]:
    """Numbers of resamples that are drawn at a time."""
    most = max(INDICES // units, 1)
    return [min(most, resamples - start) for start in range(0, resamples, most)]


def _drawn(rng: np.random.Generator, count: int, units: int) -> Float[np.ndarray, "count units"]:
    """How often each unit is drawn, of as many draws as there are units."""
    drawn = rng.integers(0, units, (count, units)) + units * np.arange(count)[:, None]
    return np.bincount(drawn.ravel(), minlength=count * units).reshape(count, units).astype(np.float64)


def _seed_weights(rng: np.random.Generator, shape: tuple[int, ...]) -> Float[np.ndarray, "resamples seeds"]:
    """The share of each seed in n - 1 draws of n; of a single seed 1."""
    resamples, seeds = shape
    if seeds == 1:
        return np.ones(shape)
    return rng.multinomial(seeds - 1, np.full(seeds, 1 / seeds), resamples) / (seeds - 1)


def _satterthwaite(parts: Sequence[tuple[float, float]]) -> float:
    """Degrees of freedom of a sum of variances; parts: (variance, its degrees of freedom)."""
    total = sum(variance for variance, _ in parts)
    return total**2 / sum(variance**2 / freedom for variance, freedom in parts) if total else math.inf

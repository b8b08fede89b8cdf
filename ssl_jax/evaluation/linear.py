"""Linear probes: accuracy of a linear classifier on frozen features, with few labels or with all."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, Shaped

from ssl_jax.evaluation import logistic
from ssl_jax.evaluation._checks import check_labeled, check_same_dim
from ssl_jax.evaluation.labels import Draw, draw_labels

# Strengths of the penalty to choose from, relative to the sum of the cross entropies: 1 / C of scikit-learn. On
# Fashion-MNIST the best lay between 1 and 200: with 10 labels per class up to all of them, for pixels and for 64
# dimensions.
STRENGTHS = tuple(10.0 ** (exponent / 3) for exponent in range(-6, 13, 2))
# Of all penalties whose held-out cross entropy is within this fraction of the least, the strongest is chosen. With many
# labels and few dimensions all weak penalties do equally well. Without FLAT, rounding would choose among them, and the
# fit would take needlessly long.
FLAT = 1e-3

# A fit is done at this norm of its gradient (see logistic.fit). Its mean cross entropy is then within 1e-4 of the
# minimum, its accuracy on Fashion-MNIST within 0.05 points.
TOLERANCE, MAX_ITERATIONS = 1e-3, 1000
# The same while choosing the penalty. A fit that needs more iterations has too weak a penalty to be chosen.
SEARCH_TOLERANCE, SEARCH_ITERATIONS = 1e-2, 60


@dataclasses.dataclass(frozen=True)
class LinearProbe:
    """The result of a probe: an entry for each seed, or a single one if it was given all labels.

    accuracies: on the test set, top-1 in percent.
    strengths: the chosen strengths of the L2 penalty.
    predictions: classes of the test images, int32.
    """

    accuracies: tuple[float, ...]
    strengths: tuple[float, ...]
    predictions: Int[np.ndarray, "seeds test"]

    @property
    def mean(self) -> float:
        """Accuracy in percent, averaged over the seeds."""
        return float(np.mean(self.accuracies))

    @property
    def std(self) -> float:
        """Standard deviation of the accuracy over the seeds, in points; unbiased, 0 for a single one."""
        return float(np.std(self.accuracies, ddof=1)) if len(self.accuracies) > 1 else 0.0


def linear_probe(
    train_features: Float[np.ndarray, "train dim"],
    train_labels: Integer[np.ndarray, "train"],
    test_features: Float[np.ndarray, "test dim"],
    test_labels: Integer[np.ndarray, "test"],
    *,
    num_classes: int,
    per_class: int | None,
    seeds: Sequence[int] = (0, 1, 2),
    strengths: Sequence[float] = STRENGTHS,
    groups: Shaped[np.ndarray, "train"] | None = None,
) -> LinearProbe:
    """Test accuracy of logistic regression on `per_class` labels of each class, drawn once with each of `seeds`.

    Features are standardized over the whole training set, which needs no labels. The strength of the penalty is the one
    with the least cross entropy on a fifth of the drawn labels (see FLAT). With it the classifier is fitted to all
    drawn labels. (The accuracy on the fifth is a coarser guide: choosing by it costs 1.3 points on pixels with 10
    labels per class.) The draw depends on the seed and the labels only: different features are probed with the same
    images.

    Args:
      train_features, test_features: finite.
      train_labels, test_labels: in 0 .. num_classes - 1. Test labels only serve to count the hits.
      num_classes: at least 2.
      per_class: at least 2; None for all labels. Then there is one draw only, and the first seed draws the fifth.
      seeds: one probe for each.
      strengths: each > 0. A fit minimizes the sum of the cross entropies + strength / 2 * the sum of squared weights of
        the standardized features (not of the intercepts).
      groups: what each training image belongs to, see `draw_labels`: none is on both sides of a choice.

    Raises: ValueError for a class with fewer labels than per_class, negative labels, features that are not finite.
    Warns: RuntimeWarning if a fit has not converged.
    """
    check_labeled("train", train_features, train_labels, num_classes)
    check_labeled("test", test_features, test_labels, num_classes)
    check_same_dim(train_features, test_features)
    if not seeds or not strengths or min(strengths) <= 0:
        raise ValueError(
            f"seeds and strengths must not be empty, and strengths must be above 0; got {seeds} and {strengths}"
        )
    draws = [
        draw_labels(train_labels, num_classes, per_class, seed, groups)
        for seed in (seeds[:1] if per_class is None else seeds)
    ]
    standardize = _Standardization.of(train_features)
    drawn = [standardize(train_features[index]) for index, _ in draws]
    bases, weights, chosen = _fit_draws(drawn, train_labels, draws, num_classes, strengths)

    test = standardize(test_features)
    logits = [basis.project(test) @ w[:, :-1].T + w[:, -1] for basis, w in zip(bases, weights, strict=True)]
    predictions = np.argmax(logits, axis=-1).astype(np.int32)
    accuracies = 100.0 * np.mean(predictions == test_labels, axis=-1)
    return LinearProbe(tuple(accuracies.tolist()), tuple(chosen.tolist()), predictions)


def linear_layer(
    features: Float[np.ndarray, "train dim"],
    labels: Integer[np.ndarray, "train"],
    *,
    num_classes: int,
    per_class: int | None,
    seed: int = 0,
    groups: Shaped[np.ndarray, "train"] | None = None,
) -> tuple[Float[np.ndarray, "dim classes"], Float[np.ndarray, " classes"], float, int]:
    """(kernel, bias, strength of the penalty, number of labels) of the probe of `linear_probe` with this one seed.

    Logits are features @ kernel + bias, for features as they are. Arguments, errors and warnings are those of
    `linear_probe`.
    """
    check_labeled("train", features, labels, num_classes)
    draw = draw_labels(labels, num_classes, per_class, seed, groups)
    standardize = _Standardization.of(features)
    drawn = standardize(features[draw[0]])
    (basis,), (weights,), (strength,) = _fit_draws([drawn], labels, [draw], num_classes, STRENGTHS)
    kernel = basis.components @ weights[:, :-1].T  # of standardized features, less their mean over the draw
    bias = weights[:, -1] - basis.mean @ kernel
    kernel = standardize.scale[:, None] * kernel
    return kernel, bias - standardize.mean @ kernel, float(strength), len(drawn)


def _fit_draws(
    drawn: Sequence[Float[np.ndarray, "images dim"]],
    labels: Integer[np.ndarray, "train"],
    draws: Sequence[Draw],
    num_classes: int,
    strengths: Sequence[float],
) -> tuple[list["_Basis"], Float[np.ndarray, "draws classes components"], Float[np.ndarray, " draws"]]:
    """(basis, weights, chosen strength) of each draw. drawn: the standardized features of its images."""
    bases = [_Basis.of(features) for features in drawn]
    # Padded to whole chunks and to all dimensions, by columns of zeros whose weights stay 0. So draws of 10 and of 100
    # labels per class share a compiled program.
    images = len(drawn[0])
    chunk = logistic.CHUNK if images < logistic.CHUNK_OF_ONE else logistic.CHUNK_OF_ONE
    rows = -(-images // chunk) * chunk
    known, dim = len(bases[0].variances), drawn[0].shape[1]
    x = np.zeros((len(draws), rows, dim + 1), np.float32)
    x[:, :, -1] = 1.0
    y = np.full((len(draws), rows), logistic.FILLER, np.int32)
    held_out = np.zeros((len(draws), rows), bool)
    for i, (index, held) in enumerate(draws):
        x[i, :images, :known] = bases[i].project(drawn[i])
        y[i, :images] = labels[index]
        held_out[i, :images] = held
    variances = np.zeros((len(draws), dim + 1), np.float32)
    variances[:, :known] = [basis.variances for basis in bases]
    weights, chosen = _choose_and_fit(jnp.asarray(x), y, held_out, variances, num_classes, strengths)
    return bases, np.delete(weights, np.s_[known:-1], axis=2), chosen


def _choose_and_fit(
    x: Float[Array, "draws rows dim"],
    y: Int[np.ndarray, "draws rows"],
    held_out: Bool[np.ndarray, "draws rows"],
    variances: Float[np.ndarray, "draws dim"],
    num_classes: int,
    strengths: Sequence[float],
) -> tuple[Float[np.ndarray, "draws classes dim"], Float[np.ndarray, "draws"]]:
    """(weights fitted to all images of each draw, their strength). The strength is chosen on the held-out images."""
    grid = np.tile(np.asarray(strengths, np.float32), (len(x), 1))  # [draws, strengths]
    start = np.zeros((*grid.shape, num_classes, x.shape[-1]), np.float32)
    search = logistic.fit(x, y, held_out, variances, grid, start, SEARCH_TOLERANCE, SEARCH_ITERATIONS)
    loss = np.asarray(search.held_out_loss)
    as_good = loss <= (1 + FLAT) * loss.min(axis=1, keepdims=True)
    best = np.argmax(np.where(as_good, grid, 0), axis=1)[:, None]
    chosen = np.take_along_axis(grid, best, axis=1)  # [draws, 1]
    start = np.take_along_axis(np.asarray(search.weights), best[:, :, None, None], axis=1)
    fit = logistic.fit(x, y, np.zeros_like(held_out), variances, chosen, start, TOLERANCE, MAX_ITERATIONS)
    if np.max(fit.gradient_norm) > TOLERANCE:
        warnings.warn(
            f"a linear probe has not converged: gradient norm {np.max(fit.gradient_norm):.1g}, at "
            f"most {TOLERANCE} is wanted, at strengths {chosen[:, 0].tolist()}; leave out the "
            "smallest of `strengths`",
            RuntimeWarning,
            stacklevel=4,
        )
    return np.asarray(fit.weights)[:, 0], chosen[:, 0]


class _Standardization(NamedTuple):
    """Shifts and scales features to mean 0 and standard deviation 1. A column that is constant becomes 0."""

    mean: Float[np.ndarray, "dim"]
    scale: Float[np.ndarray, "dim"]

    @classmethod
    def of(cls, features: Float[np.ndarray, "train dim"]) -> "_Standardization":
        # Summed in float64: over a million images a float32 sum loses a digit of the mean.
        mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
        std = np.sqrt(np.square(features - mean).mean(axis=0, dtype=np.float64)).astype(np.float32)
        return cls(mean, np.divide(1, std, out=np.zeros_like(std), where=std > 0))

    def __call__(self, rows: Float[np.ndarray, "rows dim"]) -> Float[np.ndarray, "rows dim"]:
        return ((rows - self.mean) * self.scale).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class _Basis:
    """Principal components of a draw. In this basis the penalty is the same, and the curvature is nearly diagonal."""

    mean: Float[np.ndarray, "dim"]
    components: Float[np.ndarray, "dim components"]
    variances: Float[np.ndarray, "components"]

    @classmethod
    def of(cls, features: Float[np.ndarray, "images dim"]) -> "_Basis":
        mean = features.mean(axis=0)
        centered = features - mean
        if len(features) > features.shape[1]:
            variances, components = np.linalg.eigh(centered.T @ centered / len(features))
        else:  # at most as many components as images; in all other directions the weights stay 0
            _, deviations, rows = np.linalg.svd(centered, full_matrices=False)
            variances, components = deviations**2 / len(features), rows.T
        return cls(mean, components, np.maximum(variances, 0))

    def project(self, features: Float[np.ndarray, "images dim"]) -> Float[np.ndarray, "images components"]:
        return (features - self.mean) @ self.components

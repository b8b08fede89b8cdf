"""Linear probes of frozen features where images have several labels each, or measurements, in place of one class."""

import itertools
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy.special import expit, logit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import average_precision_score, log_loss, r2_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from ssl_jax.data.sources import Source
from ssl_jax.data.targets import MULTILABEL, Targets
from ssl_jax.evaluation.features import Extracted
from ssl_jax.evaluation.labels import draw_labels
from ssl_jax.evaluation.subject import Scores

# Strengths of the L2 penalty to choose from: of logistic regression relative to the sum of the cross entropies (1 / C
# of scikit-learn), of ridge regression to the sum of squared errors of targets of standard deviation 1.
STRENGTHS = {"multilabel": (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0), "regression": tuple(10.0**e for e in range(-2, 7))}
MAX_ITERATIONS = 500
FEWEST = 2  # images with a label, and as many without: one to fit and one to choose


class _Data(NamedTuple):
    """Of the images whose target is known: features of mean 0 and deviation 1 over the training images."""

    x: Float[np.ndarray, "images dim"]
    y: Float[np.ndarray, " images"]
    groups: Shaped[np.ndarray, " images"] | None


def measure(name: str, train: Extracted, test: Extracted, of_train: Source, of_test: Source) -> Scores:
    """Scores of the targets of images, in percent, means over the outputs.

    Several labels: logistic regression for each label, "multilabel/linear/map", the average precision, and
    "multilabel/linear/auroc", the area under the ROC curve. Measurements: ridge regression,
    "regression/ridge/r2", the share of the variance that is explained; also the mean absolute error of each, in the
    measurement's own unit.

    Features are standardized. The penalty of each output is the one with the least error on a fifth of the training
    images, or of their groups; the probe is then fitted to all of them. Images whose target is not known are left out,
    and so are, with a message, outputs that are the same in all training or all test images.

    Args:
      name: of what is measured, for messages.
      train, test: features, with the images' indices in their sources.
    """
    begun = time.perf_counter()
    targets, of_tested = of_train.targets, of_test.targets
    assert targets is not None and of_tested is not None
    scale = StandardScaler().fit(train.features)
    groups = None if of_train.groups is None else of_train.groups[train.index]
    rows = [
        (np.asarray(scale.transform(found.features), np.float32), source.values[found.index], kept)
        for found, source, kept in ((train, targets, groups), (test, of_tested, None))
    ]
    found: dict[str, dict[str, float]] = {}
    for output, called in enumerate(targets.names):
        fitted, tested = (_known(*of_rows, output) for of_rows in rows)
        if reason := _unfit(targets, fitted) or _same(tested.y, "test"):
            print(f"{called} left out: {reason}")
        else:
            found[called] = _score(targets.kind, _line(targets.kind, fitted), tested)
    if not found:
        return {}
    scores = _scores(targets, found)
    summary = "  ".join(f"{score} {of['mean']:.1f}" for score, of in scores.items())
    print(f"{name} ({train.features.shape[1]} dimensions), {time.perf_counter() - begun:.0f} s: {summary}", flush=True)
    return scores


def _known(x: np.ndarray, y: np.ndarray, groups: np.ndarray | None, output: int) -> _Data:
    known = ~np.isnan(y[:, output])
    return _Data(x[known], y[known, output].astype(np.float64), None if groups is None else groups[known])


def _unfit(targets: Targets, train: _Data) -> str:
    """Why an output cannot be fitted; "" if it can."""
    if reason := _same(train.y, "training"):
        return reason
    if targets.kind == MULTILABEL and min(np.sum(train.y == 0), np.sum(train.y == 1)) < FEWEST:
        return f"fewer than {FEWEST} training images have the label, or have it not"
    if targets.kind != MULTILABEL and train.groups is not None and len(np.unique(train.groups)) < FEWEST:
        return "all its training images are of one group"
    return ""


def _same(y: Float[np.ndarray, " images"], where: str) -> str:
    return f"it is the same in all {len(y)} {where} images, or not known" if len(np.unique(y)) < 2 else ""


class _Line(NamedTuple):
    """One output's prediction, x @ weights + bias; of a label, its logit. strength: of the penalty that was chosen."""

    weights: Float[np.ndarray, " dim"]
    bias: float
    strength: float

    def __call__(self, x: Float[np.ndarray, "images dim"]) -> Float[np.ndarray, " images"]:
        return x @ self.weights + self.bias


def linear_layer(
    features: Float[np.ndarray, "images dim"], targets: Targets, groups: Shaped[np.ndarray, " images"] | None = None
) -> tuple[Float[np.ndarray, "dim outputs"], Float[np.ndarray, " outputs"], dict[str, float]]:
    """(kernel, bias, the penalty that was chosen for each output) of the probes of `measure`, for features as they are.

    An output that cannot be fitted, see `measure`, has a kernel of 0, and the bias that suits its mean.
    """
    scale = StandardScaler().fit(features)
    x = np.asarray(scale.transform(features), np.float32)
    kernel, bias = np.zeros((x.shape[1], len(targets.names))), np.zeros(len(targets.names))
    strengths: dict[str, float] = {}
    for output, called in enumerate(targets.names):
        data = _known(x, targets.values, groups, output)
        if reason := _unfit(targets, data):
            print(f"{called} is predicted as its mean: {reason}")
            mean = data.y.mean() if len(data.y) else 0.0
            bias[output] = logit(np.clip(mean, 1e-3, 1 - 1e-3)) if targets.kind == MULTILABEL else mean
            continue
        line = _line(targets.kind, data)
        kernel[:, output] = line.weights / np.asarray(scale.scale_)
        bias[output] = line.bias - np.asarray(scale.mean_) @ kernel[:, output]
        strengths[called] = line.strength
    return kernel.astype(np.float32), bias.astype(np.float32), strengths


def scores_of(
    kind: str, predicted: Float[np.ndarray, " images"], truth: Float[np.ndarray, " images"]
) -> dict[str, float]:
    """Of one output. Several labels: "map" and "auroc"; `predicted` in any order-preserving scale. Measurements: "r2",
    and "mae" in the measurement's own unit."""
    if kind == MULTILABEL:
        return {
            "map": float(average_precision_score(truth, predicted)),
            "auroc": float(roc_auc_score(truth, predicted)),
        }
    return {"r2": float(r2_score(truth, predicted)), "mae": float(np.mean(np.abs(truth - predicted)))}


def _line(kind: str, train: _Data) -> _Line:
    """Fitted to all, with the penalty that is chosen on a part."""
    fit, error, both = (_label, _error_of_label, True) if kind == MULTILABEL else (_number, _squared, False)
    return fit(train, _choose(train, fit, error, STRENGTHS[kind], both=both))


def _label(data: _Data, strength: float) -> _Line:
    model = LogisticRegression(C=1 / strength, max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():  # a penalty too weak to converge is not the best one
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(data.x, data.y)
    return _Line(model.coef_[0], np.asarray(model.intercept_).item(), strength)


def _error_of_label(y: np.ndarray, logits: np.ndarray) -> float:
    return float(log_loss(y, expit(logits), labels=[0, 1]))


def _number(data: _Data, strength: float) -> _Line:
    mean, deviation = data.y.mean(), data.y.std() or 1.0
    model = Ridge(alpha=strength).fit(data.x, (data.y - mean) / deviation)
    return _Line(np.asarray(model.coef_) * deviation, float(model.intercept_ * deviation + mean), strength)


def _squared(y: np.ndarray, predicted: np.ndarray) -> float:
    return float(np.mean((y - predicted) ** 2))


def _score(kind: str, line: _Line, test: _Data) -> dict[str, float]:
    return scores_of(kind, line(test.x), test.y) | {"strength": line.strength}


def _choose(
    data: _Data,
    fit: Callable[[_Data, float], _Line],
    error: Callable[[np.ndarray, np.ndarray], float],
    strengths: tuple[float, ...],
    *,
    both: bool,
) -> float:
    """The strength with the least error on held-out images; of equals the greatest."""
    fitted, held = _divide(data, both=both)
    part = _Data(data.x[fitted], data.y[fitted], None)
    errors = [error(data.y[held], fit(part, strength)(data.x[held])) for strength in strengths]
    least = min(errors)
    return max(strength for strength, found in zip(strengths, errors, strict=True) if found <= least)


def _divide(data: _Data, *, both: bool) -> tuple[Int[np.ndarray, " fitted"], Int[np.ndarray, " held"]]:
    """(images to fit, images to choose on), whole groups. both: the first have images with and without the label."""
    labels, classes = (data.y.astype(np.int32), 2) if both else (np.zeros(len(data.y), np.int32), 1)
    # The only groups with a rare label may be held out, so another draw is made. Each group is fitted in most draws.
    draws = (draw_labels(labels, classes, None, seed, data.groups) for seed in itertools.count())
    parts = ((index[~held_out], index[held_out]) for index, held_out in draws)
    return next((fitted, held) for fitted, held in parts if len(np.unique(labels[fitted])) == classes)


def _scores(targets: Targets, found: dict[str, dict[str, float]]) -> Scores:
    def mean(measure: str) -> dict[str, Any]:
        of_outputs = {name: 100 * of[measure] for name, of in found.items()}
        return {"mean": float(np.mean([*of_outputs.values()])), "std": 0.0, "outputs": of_outputs}

    strengths = {name: of["strength"] for name, of in found.items()}
    if targets.kind == MULTILABEL:
        return {
            f"multilabel/linear/{measure}": mean(measure) | {"strengths": strengths} for measure in ("map", "auroc")
        }
    errors = {name: of["mae"] for name, of in found.items()}
    return {"regression/ridge/r2": mean("r2") | {"mean_absolute_error": errors, "strengths": strengths}}

"""Puts the numbers of evaluation.json in words: what each protocol asks, and what pre-training was worth there."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ssl_jax.report import names
from ssl_jax.report.protocols import describe

# Keys of evaluation.json -> what they are called in the report.
SUBJECTS = {"pretrained": "Pre-trained", "random": "Random network", "pixels": "Raw pixels"}
BASELINES = {"random": "the best random network", "pixels": "raw pixels"}
# Protocols that are measured with several numbers of labels -> what they are called in the report.
BY_LABELS = {"linear": "Linear probe", "finetune": "Fine-tuned"}
# End of a protocol's key -> what its percentage says.
VERDICTS = {
    "/map": "reaches an average precision of {}%",
    "/auroc": "has {}% of the area under the ROC curve",
    "/r2": "explains {}% of the variance among the test images",
    "": "is right on {}% of the test images",
}
VARIANTS = {
    "initial": "BatchNorm statistics as initialized",
    "calibrated": "BatchNorm statistics of training images",
    "initial_zero_residual": "residual scales 0, BatchNorm statistics as initialized",
    "calibrated_zero_residual": "residual scales 0, BatchNorm statistics of training images",
}


@dataclasses.dataclass(frozen=True)
class Score:
    mean: float  # percent
    std: float  # over seeds, percent; 0 where nothing was drawn
    class_mean: float | None = None  # percent, each class counting alike; None where it does not apply

    @property
    def differs(self) -> bool:
        """Whether the mean over classes differs from `mean`. It does if classes differ in size."""
        return self.class_mean is not None and abs(self.mean - self.class_mean) >= 0.05


@dataclasses.dataclass(frozen=True)
class Row:
    """One protocol: its key and name, what decides there, and a score for each subject that has one."""

    protocol: str
    name: str
    judge: str
    scores: Mapping[str, Score]

    @property
    def verdict(self) -> str:
        """What the judge does, with {} for the percentage."""
        return next((words for end, words in VERDICTS.items() if self.protocol.endswith(end)), VERDICTS[""])

    def gain(self, baseline: str) -> "Gain | None":
        """Gain of the pre-trained features over a baseline; None if one of the two is missing."""
        if "pretrained" not in self.scores or baseline not in self.scores:
            return None
        ours, theirs = self.scores["pretrained"], self.scores[baseline]
        points = ours.mean - theirs.mean
        return Gain(BASELINES[baseline], points, within_spread=abs(points) < max(ours.std, theirs.std))

    @property
    def gains(self) -> list["Gain"]:
        return [gain for baseline in BASELINES if (gain := self.gain(baseline))]


@dataclasses.dataclass(frozen=True)
class Gain:
    baseline: str  # its name in a sentence
    points: float  # percentage points, negative if the baseline is better
    within_spread: bool  # no larger than the standard deviation over seeds

    def __str__(self) -> str:
        if abs(self.points) < 0.05:
            return f"level with {self.baseline}"
        within = " (within the spread over seeds)" if self.within_spread else ""
        return f"{abs(self.points):.1f} points {'above' if self.points > 0 else 'below'} {self.baseline}{within}"


def rows(evaluation: Mapping[str, Any]) -> list[Row]:
    """One row for each protocol that the pre-trained features were measured by, in the protocols' order."""
    of = {subject: subject_scores(evaluation, subject) for subject in SUBJECTS}
    return [
        Row(
            protocol,
            *describe(protocol),
            {subject: scores[protocol] for subject, scores in of.items() if protocol in scores},
        )
        for protocol in of["pretrained"]
    ]


def subject_scores(evaluation: Mapping[str, Any], subject: str) -> dict[str, Score]:
    """protocol -> score."""
    return {protocol: _score(entry) for protocol, entry in evaluation.get(subject, {}).items()}


def over_seeds(runs: Sequence[Mapping[str, Score]]) -> dict[str, Score]:
    """protocol -> the mean and the standard deviation of the runs' means; for a single run, its own score."""
    found: dict[str, list[Score]] = {}
    for scores in runs:
        for protocol, score in scores.items():
            found.setdefault(protocol, []).append(score)
    return {protocol: scores[0] if len(scores) == 1 else _spread(scores) for protocol, scores in found.items()}


def _spread(scores: Sequence[Score]) -> Score:
    means = [score.mean for score in scores]
    class_means = [score.class_mean for score in scores if score.class_mean is not None]
    by_class = float(np.mean(class_means)) if len(class_means) == len(scores) else None
    return Score(float(np.mean(means)), float(np.std(means, ddof=1)), by_class)


def largest_class(evaluation: Mapping[str, Any]) -> tuple[str, float] | None:
    """(name, percent of the test images) of the class with the most images; None if evaluation.json does not say."""
    found = evaluation.get("data", {}).get("majority")
    return (names.short(str(found["class"]), 40), float(found["percent"])) if found else None


def all_labels(evaluation: Mapping[str, Any]) -> float | None:
    """Average labels per class in the whole training set; None if evaluation.json does not say."""
    data = evaluation.get("data", {})
    return data["train_images"] / len(data["classes"]) if data.get("train_images") and data.get("classes") else None


def by_labels(scores: Mapping[str, Score], kind: str, all_labels: float | None) -> list[tuple[float, Score]]:
    """(labels per class, score) of the protocols of a `kind` in BY_LABELS, fewest labels first.

    all_labels: labels per class in the whole training set; None leaves out the protocol with all labels.
    """
    points = []
    for protocol, score in scores.items():
        if match := re.fullmatch(rf"{kind}/(?:(\d+)_per_class|all)/top1", protocol):
            count = float(match[1]) if match[1] else all_labels
            points += [(count, score)] if count else []
    return sorted(points, key=lambda point: point[0])


def label_lines(evaluation: Mapping[str, Any]) -> dict[str, dict[str, list[tuple[float, Score]]]]:
    """kind -> subject -> points of `by_labels`, for kinds that were measured with two or more numbers of labels."""
    every = all_labels(evaluation)
    found = {}
    for kind in BY_LABELS:
        lines = {subject: by_labels(subject_scores(evaluation, subject), kind, every) for subject in SUBJECTS}
        if len(lines["pretrained"]) >= 2:
            found[kind] = {subject: points for subject, points in lines.items() if points}
    return found


def _score(entry: Mapping[str, Any]) -> Score:
    class_mean = entry.get("class_mean")
    return Score(float(entry["mean"]), float(entry.get("std", 0.0)), None if class_mean is None else float(class_mean))


def headline(rows: list[Row]) -> list[Row]:
    """The rows that the page opens with, at most three: one kNN, and the linear probes with the fewest labels."""
    knn = [row for row in rows if row.name.startswith("kNN")]
    linear = [row for row in rows if row.name.startswith("Linear")]
    return (knn[:1] + linear[:2]) or rows[:3]


def lead(rows: list[Row]) -> str:
    """The page's first sentence. It is about the protocol with the fewest labels, where pre-training matters most."""
    linear = [row for row in rows if row.name.startswith("Linear")]
    if not rows:
        return ""
    row = (linear or rows)[0]
    gains = " and ".join(map(str, row.gains))
    found = row.verdict.format(f"{row.scores['pretrained'].mean:.1f}")
    return f"On features learnt without labels, {row.judge} {found}{f': {gains}' if gains else ''}."


def best_lead(rows: list[Row]) -> str:
    """A sentence about the best of the accuracies over all classes of frozen features; of images with several labels or
    measurements, about the first score. "" if nothing of this was measured."""
    frozen = [row for row in rows if not row.protocol.startswith(("finetune", "prototypes/5_way"))]
    accuracies = [row for row in frozen if row.protocol.endswith("/top1")]
    others = [row for row in frozen if row.protocol.startswith(("multilabel", "regression"))]
    if not accuracies + others:
        return ""
    row = max(accuracies, key=lambda row: row.scores["pretrained"].mean, default=None) or others[0]
    gains = " and ".join(map(str, row.gains))
    found = row.verdict.format(f"{row.scores['pretrained'].mean:.1f}")
    said = f"{row.judge} {found} with the features frozen{f': {gains}' if gains else ''}."
    return f"At best, {said}" if len(accuracies) > 1 else said[0].upper() + said[1:]


def variants(evaluation: Mapping[str, dict[str, Any]]) -> list[tuple[str, list[Score | None]]]:
    """(name, a score for each protocol of `rows`) of each variant of random initialization."""
    protocols = list(evaluation.get("pretrained", {}))
    return [
        (VARIANTS.get(name, name), [_score(scores[p]) if p in scores else None for p in protocols])
        for name, scores in evaluation.get("random_variants", {}).items()
    ]

"""Label efficiency: accuracy over the number of labels, and how many labels pre-training is worth.

The question of Chen et al. 2020, arXiv:2006.10029, section 3.1, asked of both linear probes and fine-tuning.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from ssl_jax.studies import pictures
from ssl_jax.studies.base import Plan
from ssl_jax.studies.intervals import Comparison, compare, crossing, estimate, listed
from ssl_jax.studies.measure import Protocol, Table
from ssl_jax.studies.pretrainings import against_baselines


def plan(config: ConfigDict) -> Plan:
    return against_baselines(config)


def conclude(config: ConfigDict, plan: Plan, table: Table) -> list[str | Comparison]:
    """For linear probes and for fine-tuning: the difference to each baseline with the fewest labels, the difference to
    random initialization with each number of labels, and the labels saved."""
    ours = plan.subjects[0].name
    parts: list[str | Comparison] = []
    for name in ("linear", "finetune"):
        labels = sorted(config[name].labels_per_class)
        if not labels:
            continue
        fewest = Protocol(name, labels[0])
        how = "by a linear probe" if name == "linear" else "fine-tuned"
        for subject in plan.subjects[1:]:
            if fewest in table[subject.name]:
                first, second = (table[s][fewest][:, -1] for s in (ours, subject.name))
                where = f"{how} with {labels[0]} labels per class"
                parts.append(compare(plan.called(ours), plan.called(subject.name), first, second, where))
        if len(labels) > 1:
            curves = {
                s: np.stack([table[s][Protocol(name, n)][:, -1] for n in labels], axis=1) for s in (ours, "random")
            }
            parts.append(
                at_each(plan.called(ours), plan.called("random"), how, labels, curves[ours] - curves["random"])
            )
            parts.append(labels_saved(plan.called(ours), how, np.array(labels), curves[ours], curves["random"]))
    return parts


def at_each(ours: str, theirs: str, how: str, labels: Sequence[int], gains: np.ndarray) -> str:
    """A sentence: with which numbers of labels `ours` is above `theirs`. gains: [seeds, labels], in points."""
    estimates = [estimate(column) for column in gains.T]
    above, below, open_ = ([n for n, e in zip(labels, estimates, strict=True) if e.sign == s] for s in (1, -1, 0))
    if above == list(labels):
        means = [e.mean for e in estimates]
        least, most = f"{min(means):.1f}", f"{max(means):.1f}"
        by = least if least == most else f"{least} to {most}"
        return (
            f"{ours} is above {theirs} {how} with each of {listed(labels)} labels per class, by {by} points; each 95 % "
            "interval of the difference is above 0."
        )
    parts = [
        f"{claim} with {listed(some)}"
        for claim, some in (("is above", above), ("is below", below), ("is not clearly either", open_))
        if some
    ]
    return f"Against {theirs}, {how}, {ours} {', '.join(parts)} labels per class."


def labels_saved(ours: str, how: str, labels: np.ndarray, curve: np.ndarray, random: np.ndarray) -> str:
    """A sentence: the labels that random initialization needs to be as accurate as `ours` is with the fewest labels.

    curve, random: [seeds, labels]. The number of labels is interpolated on a logarithmic axis. The mean and interval
    are those of the ratios' logarithms.
    """
    log_labels = np.log(labels)
    needed = np.array([crossing(log_labels, theirs, own[0]) for own, theirs in zip(curve, random, strict=True)])
    short = int(np.sum(np.isnan(needed)))
    begin = f"To be as accurate as {ours} {how} with {labels[0]} labels per class, random initialization"
    if short:
        return f"{begin} needs more than {labels[-1]}, the most that were given, for {short} of {len(needed)} seeds."
    # A curve that begins above the level says only that no more labels are needed.
    ratio = estimate(needed - log_labels[0])
    bounds = f"{np.exp(ratio.low):.1f} to {np.exp(ratio.high):.1f} times" if ratio.seeds > 1 else ratio.interval
    if ratio.low > 0:
        bounds = f"95 % interval {bounds}, {ratio.seeds} seeds"
        return f"{begin} needs {np.exp(ratio.mean):.1f} times as many ({bounds})."
    return f"{begin} does not clearly need more labels: {np.exp(ratio.mean):.1f} times as many ({bounds})."


def picture(config: ConfigDict, plan: Plan, table: Table) -> Figure:
    return pictures.over_labels(config, plan, table)

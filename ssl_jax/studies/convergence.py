"""Convergence: fine-tuning accuracy over steps, and the steps that pre-training saves."""

import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from ssl_jax import config as configs
from ssl_jax.studies import pictures
from ssl_jax.studies.base import Plan
from ssl_jax.studies.intervals import Comparison, compare, crossing, estimate
from ssl_jax.studies.measure import Protocol, Table, measured_steps
from ssl_jax.studies.pretrainings import against_baselines


def plan(config: ConfigDict) -> Plan:
    tuning = config.finetune
    if not tuning.labels_per_class or len(tuning.measured) < 2 or tuning.measured[-1] != tuning.steps:
        raise configs.ConfigError(
            "convergence needs config.finetune.labels_per_class, and config.finetune.measured with "
            f"at least one early step and the last one, {tuning.steps}; got "
            f"{tuple(tuning.labels_per_class)} and {tuple(tuning.measured)}"
        )
    return against_baselines(config)


def conclude(config: ConfigDict, plan: Plan, table: Table) -> list[str | Comparison]:
    """For each number of labels: the steps saved, and the difference at the end."""
    parts: list[str | Comparison] = []
    for per_class in config.finetune.labels_per_class:
        protocol = Protocol("finetune", per_class)
        random = table["random"][protocol]
        where = f"after {config.finetune.steps} steps of fine-tuning with {per_class} labels per class"
        for subject in ("pretrained", "supervised"):
            curves = table[subject][protocol]
            parts.append(
                steps_saved(plan.called(subject), per_class, np.array(measured_steps(config), float), curves, random)
            )
            parts.append(compare(plan.called(subject), plan.called("random"), curves[:, -1], random[:, -1], where))
    return parts


def steps_saved(ours: str, per_class: int, steps: np.ndarray, curves: np.ndarray, random: np.ndarray) -> str:
    """A sentence on the steps that `ours` saves to reach the accuracy that random initialization has at the end.

    For both, the first step with that accuracy counts, interpolated within each seed's curve [seeds, steps].
    """
    at = np.array([crossing(steps, own, theirs[-1]) for own, theirs in zip(curves, random, strict=True)])
    begin = f"With {per_class} labels per class, {ours}"
    goal = "the accuracy that random initialization ends with"
    if np.any(np.isnan(at)):
        short = int(np.sum(np.isnan(at)))
        return f"{begin} does not reach {goal} in {int(steps[-1])} steps, for {short} of {len(at)} seeds."
    theirs = np.array([crossing(steps, row, row[-1]) for row in random])
    saved = estimate(theirs - at)
    reached = f"reaches {goal} after {np.mean(at):.0f} steps in place of {np.mean(theirs):.0f}"
    if saved.sign > 0:
        return f"{begin} {reached}: {saved.mean:.0f} steps saved ({saved.interval})."
    if saved.sign < 0:
        return f"{begin} {reached}: {-saved.mean:.0f} steps lost (steps saved: {saved.interval})."
    return (
        f"{begin} {reached}; that this saves steps does not show at this scale: {saved.mean:+.0f} ({saved.interval})."
    )


def picture(config: ConfigDict, plan: Plan, table: Table) -> Figure:
    return pictures.over_steps(config, plan, table)

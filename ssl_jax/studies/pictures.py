"""The plot of a study: means with their 95 % intervals over seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from ssl_jax.studies.base import Plan
from ssl_jax.studies.intervals import Estimate, estimate
from ssl_jax.studies.measure import Protocol, Table, measured_steps, protocols

# Okabe and Ito's colors, which the color-blind can tell apart. The markers can be told apart without color.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
TITLES = {"linear": "Linear probe", "finetune": "Fine-tuned"}
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "ssl_jax",  # the same figure gives the same bytes
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
}


def over_labels(config: ConfigDict, plan: Plan, table: Table) -> Figure:
    """Accuracy over labels per class, one panel for the linear probe and one for fine-tuning."""
    names = [name for name in ("linear", "finetune") if config[name].labels_per_class]
    with rc_context(STYLE):
        figure = Figure(figsize=(5.2 * len(names), 4.2), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            labels = sorted(config[name].labels_per_class)
            curves = {
                subject: [estimate(rows[Protocol(name, n)][:, -1]) for n in labels]
                for subject, rows in table.items()
                if Protocol(name, labels[0]) in rows
            }
            _lines(axes, plan, labels, curves, apart=1.03)
            axes.set(xscale="log", xlabel="labels per class", title=TITLES[name])
            axes.set_xticks(labels, map(str, labels))
            axes.xaxis.set_minor_locator(ticker.NullLocator())
        _legend(figure)
    return figure


def over_steps(config: ConfigDict, plan: Plan, table: Table) -> Figure:
    """Accuracy over steps of fine-tuning, a panel for each number of labels."""
    counts = config.finetune.labels_per_class
    with rc_context(STYLE):
        figure = Figure(figsize=(5.2 * len(counts), 4.2), layout="constrained")
        for axes, count in zip(figure.subplots(1, len(counts), squeeze=False)[0], counts, strict=True):
            curves = {
                subject: [estimate(column) for column in rows[Protocol("finetune", count)].T]
                for subject, rows in table.items()
                if Protocol("finetune", count) in rows
            }
            _lines(axes, plan, measured_steps(config), curves)
            axes.set(xlabel="step of fine-tuning", title=f"{count} labels per class")
        _legend(figure)
    return figure


def ranked(config: ConfigDict, plan: Plan, table: Table) -> Figure:
    """A row for each subject, the best on top, a panel for each protocol."""
    found = protocols(config)
    with rc_context(STYLE):
        figure = Figure(figsize=(5.2 * len(found), 0.32 * len(table) + 1.2), layout="constrained")
        for axes, protocol in zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True):
            estimates = {name: estimate(rows[protocol][:, -1]) for name, rows in table.items() if protocol in rows}
            order = sorted(estimates, key=lambda name: estimates[name].mean)
            axes.errorbar(
                [estimates[name].mean for name in order],
                np.arange(len(order)),
                xerr=_bars([estimates[name] for name in order]),
                fmt="o",
                color=COLORS[0],
                capsize=3,
            )
            axes.set_yticks(np.arange(len(order)), order)
            axes.set(xlabel="accuracy (%)", title=str(protocol))
    return figure


def _lines(
    axes: Axes, plan: Plan, x: Sequence[int], curves: Mapping[str, Sequence[Estimate]], *, apart: float = 1.0
) -> None:
    """apart: factor between the x of a subject's points and of the last subject's, so that no bar hides another."""
    style = dict(zip((subject.name for subject in plan.subjects), zip(COLORS, MARKERS, strict=True), strict=False))
    for number, (subject, estimates) in enumerate(curves.items()):
        color, marker = style[subject]
        axes.errorbar(
            np.asarray(x) * apart ** (number - (len(curves) - 1) / 2),
            [point.mean for point in estimates],
            yerr=_bars(estimates),
            color=color,
            marker=marker,
            capsize=3,
            label=plan.called(subject),
        )
    axes.set_ylabel("accuracy (%)")


def _legend(figure: Figure) -> None:
    """One legend for all panels, below them."""
    found = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=2, fontsize=8, frameon=False)


def _bars(estimates: Sequence[Estimate]) -> np.ndarray | None:
    """Half widths of the intervals; None for a single seed, which has none."""
    if estimates[0].seeds == 1:
        return None
    return np.array([point.high - point.mean for point in estimates])

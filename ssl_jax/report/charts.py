"""Line charts, dot plots and matrices as inline SVG, in the page's own fonts and colors, light or dark."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from ssl_jax.report.names import short
from ssl_jax.report.palette import SUBJECT_STYLES, Style
from ssl_jax.report.scores import Score
from ssl_jax.report.svg import INKS, draw

SIZE = (4.6, 2.7)  # inches of 72 units
TICK_STEPS = [1, 2, 2.5, 5, 10]
LONGEST_NAME = 44  # characters that fit the width
MARKED = 12  # a line with at most this many points marks each of them


@dataclasses.dataclass(frozen=True)
class Line:
    """Values over steps, in a band from `low` to `high` if these are given. NaN leaves a gap."""

    steps: Int[np.ndarray, " n"]
    values: Float[np.ndarray, " n"]
    low: Float[np.ndarray, " n"] | None = None
    high: Float[np.ndarray, " n"] | None = None


def curve(
    steps: Int[np.ndarray, " n"],
    values: Float[np.ndarray, " n"],
    *,
    level: tuple[float, str] | None = None,
    percent: bool = False,
    from_zero: bool = False,
    size: tuple[float, float] = SIZE,
) -> str:
    """`values` over `steps` as SVG; `level` is a (height, label) to compare with, drawn dashed. NaN leaves a gap.

    from_zero: the axis begins at 0, for values that are read as a share of what is possible.
    """
    with draw(size) as drawing:
        axes = drawing.axes
        marker = "o" if len(steps) <= MARKED else ""
        axes.plot(steps, values, color=INKS["pretrained"], linewidth=1.8, marker=marker, markersize=4.5)
        if from_zero:
            axes.set_ylim(bottom=0)
        if level is not None and np.isfinite(level[0]):
            axes.axhline(level[0], color=INKS["muted"], linewidth=1.2, linestyle=(0, (4, 3)))
            axes.annotate(
                level[1],
                (1.0, level[0]),
                xycoords=axes.get_yaxis_transform(),
                xytext=(0, 4),
                textcoords="offset points",
                horizontalalignment="right",
                color=INKS["muted"],
            )
            # Room for the label above the line.
            low, high = axes.get_ylim()
            axes.set_ylim(low, max(high, level[0] + 0.16 * (high - low)))
        _over_steps(axes, percent=percent, nbins=4 if size[1] < 2.5 else 5)
    return drawing.inline


def curves(lines: Sequence[tuple[Line, Style]], *, percent: bool = False) -> str:
    """Several lines on one axis as SVG, each with its band and with marks some points apart."""
    with draw(SIZE) as drawing:
        axes = drawing.axes
        for number, (line, style) in enumerate(lines):
            if line.low is not None and line.high is not None:
                axes.fill_between(line.steps, line.low, line.high, color=INKS[style.color], alpha=0.22, linewidth=0)
            between = max(len(line.steps) // (MARKED // 2), 1)
            # Shifted, so that the marks of coinciding lines do not coincide.
            every = (number * between // len(lines), between)
            axes.plot(line.steps, line.values, linewidth=1.8, markevery=every, **_marker(style, 0.75))
        _over_steps(axes, percent=percent, nbins=5)
    return drawing.inline


def dots(rows: Mapping[str, Mapping[str, Score]], styles: Mapping[str, Style] = SUBJECT_STYLES) -> str:
    """The scores of each row on one axis, with their std, as SVG.

    Args:
      rows: name -> what is compared -> its score.
      styles: what is compared -> its style, the most important first: it is drawn above the others.
    """
    with draw((SIZE[0], 0.6 * len(rows) + 0.4)) as drawing:
        axes = drawing.axes
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        order = list(styles)
        for height, (name, scores) in enumerate(rows.items()):
            means = [score.mean for score in scores.values()]
            axes.plot([min(means), max(means)], [height, height], color=INKS["rule"], linewidth=3, zorder=1)
            for compared, score in scores.items():
                bar: dict[str, Any] = dict(xerr=score.std or None, elinewidth=1.4, capsize=3, linestyle="")
                above = 2 + (len(order) - order.index(compared)) / len(order)
                axes.errorbar(score.mean, height, **bar, **_marker(styles[compared]), zorder=above)
            axes.annotate(
                short(name, LONGEST_NAME),
                (0, height),
                xycoords=axes.get_yaxis_transform(),
                xytext=(0, 9),
                textcoords="offset points",
                color=INKS["ink"],
                in_layout=False,  # a long name takes no room from the dots
            )
        axes.set_ylim(len(rows) - 0.7, -0.6)
        axes.set_yticks([])
        axes.xaxis.set_major_locator(ticker.MaxNLocator(nbins=5, steps=TICK_STEPS))
        axes.xaxis.set_major_formatter(_percent)
        axes.margins(x=0.06)
    return drawing.inline


def label_efficiency(
    lines: Mapping[str, Sequence[tuple[float, Score]]],
    styles: Mapping[str, Style] = SUBJECT_STYLES,
    *,
    all_labels: float | None = None,
) -> str:
    """Scores over the number of labels per class, on a log axis, with their std, as SVG.

    Args:
      lines: what is compared -> (labels per class, score), fewest first.
      styles: what is compared -> its style, the most important first.
      all_labels: the number of labels per class that is called "all".
    """
    with draw(SIZE) as drawing:
        axes = drawing.axes
        for compared, points in reversed(list(lines.items())):  # the first is drawn above the others
            counts = [count for count, _ in points]
            means, stds = [score.mean for _, score in points], [score.std for _, score in points]
            bar: dict[str, Any] = dict(yerr=stds if any(stds) else None, elinewidth=1.4, capsize=3, linewidth=1.8)
            axes.errorbar(counts, means, **bar, **_marker(styles[compared], 0.85))
        axes.set_xscale("log")
        ticks = _apart(sorted({count for points in lines.values() for count, _ in points}))
        axes.set_xticks(ticks, ["all" if count == all_labels else f"{count:,.0f}" for count in ticks])
        axes.xaxis.set_minor_locator(ticker.NullLocator())
        axes.yaxis.set_major_locator(ticker.MaxNLocator(nbins=5, steps=TICK_STEPS))
        axes.yaxis.set_major_formatter(_percent)
        axes.margins(x=0.07)
        axes.set_xlabel("labels per class")
    return drawing.inline


def matrix(percents: Float[np.ndarray, "classes classes"], names: Sequence[str]) -> str:
    """How many percent of each class's images were taken for which class, as SVG: the darker, the more.

    Rows are classes, with names and numbers. Columns are what they were taken for, with numbers only.
    """
    count = len(names)
    with draw((SIZE[0], SIZE[0] * (0.25 + 0.06 * count) if count < 12 else SIZE[0])) as drawing:
        axes = drawing.axes
        for (row, column), percent in np.ndenumerate(percents):
            shade = 0.03 + 0.47 * percent / 100  # at most half, so that the ink stands out, light or dark
            corner = (column - 0.46, row - 0.46)
            axes.add_patch(Rectangle(corner, 0.92, 0.92, linewidth=0, color=INKS["pretrained"], alpha=shade))
            if percent > 0.5:
                axes.text(
                    column, row, f"{percent:.0f}", fontsize=9, color=INKS["ink"], ha="center", va="center_baseline"
                )
        axes.grid(visible=False)
        axes.set_xlim(-0.5, count - 0.5)
        axes.set_ylim(count - 0.5, -0.5)
        numbers = range(count)
        axes.set_xticks(numbers, [f"{number + 1}" for number in numbers])
        axes.set_yticks(numbers, [f"{name}  {number + 1}" for number, name in enumerate(names)])
        axes.tick_params(axis="x", length=0)
        axes.spines["bottom"].set_visible(False)
        axes.set_xlabel("taken for")
    return drawing.inline


def _marker(style: Style, scale: float = 1.0) -> dict[str, Any]:
    color = INKS[style.color]
    face = INKS["panel"] if style.mark.hollow else color
    size = scale * style.size
    return dict(color=color, marker=style.marker, markersize=size, markerfacecolor=face, markeredgewidth=1.8)


def _over_steps(axes: Axes, *, percent: bool, nbins: int) -> None:
    axes.xaxis.set_major_locator(ticker.MaxNLocator(nbins=4, integer=True, steps=TICK_STEPS))
    axes.xaxis.set_major_formatter(_count)
    axes.yaxis.set_major_locator(ticker.MaxNLocator(nbins=nbins, steps=TICK_STEPS))
    if percent:
        axes.yaxis.set_major_formatter(_percent)
    axes.set_xlabel("step")


def _apart(counts: Sequence[float]) -> list[float]:
    """The sorted counts whose labels have room beside each other on a log axis. The last count is always kept."""
    kept: list[float] = []
    for count in reversed(counts):
        if not kept or np.log(kept[-1] / count) > 0.13 * np.log(counts[-1] / counts[0]):
            kept.append(count)
    return kept[::-1]


def _count(value: float, position: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:,.0f}"


def _percent(value: float, position: float) -> str:
    return f"{value:g}%"

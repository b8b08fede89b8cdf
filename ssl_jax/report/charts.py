"""Line charts and dot plots as inline SVG, in the page's own fonts and colors, light or dark."""

import hashlib
import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context, ticker
from matplotlib.figure import Figure

from ssl_jax.report.scores import SUBJECTS, Row

# Written by matplotlib as these colors, then replaced by the page's CSS variables, which follow its color scheme.
INK, MUTED, RULE, PAPER = "#000001", "#000002", "#000003", "#000004"
SUBJECT_COLORS = {"pretrained": "#000005", "random": "#000006", "pixels": "#000007"}
VARIABLES = {INK: "ink", MUTED: "muted", RULE: "rule", PAPER: "paper"} | {c: s for s, c in SUBJECT_COLORS.items()}
MARKERS = {"pretrained": "o", "random": "D", "pixels": "s"}  # told apart without color, too

TICK_STEPS = [1, 2, 2.5, 5, 10]

STYLE: dict[Any, Any] = {  # matplotlib's rcParams
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "ssl_jax",  # the same figure, the same bytes
    "font.size": 11,
    "font.family": "sans-serif",
    "text.color": INK,
    "text.parse_math": False,  # a $ in a name is a $
    "axes.edgecolor": RULE,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0,
    "lines.solid_capstyle": "round",
}


def curve(
    steps: np.ndarray,
    values: np.ndarray,
    *,
    level: tuple[float, str] | None = None,
    percent: bool = False,
    from_zero: bool = False,
    size: tuple[float, float] = (4.6, 2.7),
) -> str:
    """`values` over `steps` as SVG; `level` is a (height, label) to compare with, drawn dashed. NaN leaves a gap.

    from_zero: the axis begins at 0, for values of which it is the share of the possible that counts.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        few = len(steps) <= 12
        axes.plot(
            steps, values, color=SUBJECT_COLORS["pretrained"], linewidth=1.8, marker="o" if few else "", markersize=4.5
        )
        if from_zero:
            axes.set_ylim(bottom=0)
        if level is not None and np.isfinite(level[0]):
            axes.axhline(level[0], color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
            axes.annotate(
                level[1],
                (1.0, level[0]),
                xycoords=axes.get_yaxis_transform(),
                xytext=(0, 4),
                textcoords="offset points",
                horizontalalignment="right",
                color=MUTED,
            )
            # Room for the label above the line.
            low, high = axes.get_ylim()
            axes.set_ylim(low, max(high, level[0] + 0.16 * (high - low)))
        axes.xaxis.set_major_locator(ticker.MaxNLocator(nbins=4, integer=True, steps=TICK_STEPS))
        axes.xaxis.set_major_formatter(_count)
        axes.yaxis.set_major_locator(ticker.MaxNLocator(nbins=4 if size[1] < 2.5 else 5, steps=TICK_STEPS))
        if percent:
            axes.yaxis.set_major_formatter(_percent)
        axes.set_xlabel("step")
        return _svg(figure)


def dots(rows: Sequence[Row]) -> str:
    """The subjects' scores of each row on one scale, with their std over seeds, as SVG."""
    with rc_context(STYLE):
        figure = Figure(figsize=(4.6, 0.6 * len(rows) + 0.4), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        for height, row in enumerate(rows):
            means = [score.mean for score in row.scores.values()]
            axes.plot([min(means), max(means)], [height, height], color=RULE, linewidth=3, zorder=1)
            for subject, score in row.scores.items():
                axes.errorbar(
                    score.mean,
                    height,
                    xerr=score.std or None,
                    fmt=MARKERS[subject],
                    color=SUBJECT_COLORS[subject],
                    markerfacecolor=SUBJECT_COLORS[subject] if subject == "pretrained" else PAPER,
                    markeredgewidth=1.8,
                    markersize={"pretrained": 9, "random": 6.5, "pixels": 7}[subject],
                    elinewidth=1.4,
                    capsize=3,
                    zorder=3 if subject == "pretrained" else 2,
                )
            axes.annotate(
                row.name,
                (0, height),
                xycoords=axes.get_yaxis_transform(),
                xytext=(0, 9),
                textcoords="offset points",
                color=INK,
                in_layout=False,  # a long name takes no room from the dots
            )
        axes.set_ylim(len(rows) - 0.7, -0.6)
        axes.set_yticks([])
        axes.xaxis.set_major_locator(ticker.MaxNLocator(nbins=5, steps=TICK_STEPS))
        axes.xaxis.set_major_formatter(_percent)
        axes.margins(x=0.06)
        return _svg(figure)


def legend() -> list[tuple[str, str, str]]:
    """(subject, its marker, its name), for the key beside `dots`."""
    shapes = {"o": "circle", "D": "diamond", "s": "square"}
    return [(subject, shapes[MARKERS[subject]], name) for subject, name in SUBJECTS.items()]


def _count(value: float, position: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:,.0f}"


def _percent(value: float, position: float) -> str:
    return f"{value:g}%"


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # The page sets the size.
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", svg, count=1)
    # On one page with other figures an id must not repeat: those that are referred to are made this figure's own.
    own = hashlib.sha256(svg.encode()).hexdigest()[:8]
    referred = set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: f' id="{m[1]}-{own}"' if m[1] in referred else "", svg)
    svg = re.sub(r'(url\(|href=")#([^)"]+)', rf"\1#\2-{own}", svg)
    for color, name in VARIABLES.items():
        svg = svg.replace(color, f"var(--{name})")
    return svg.strip()

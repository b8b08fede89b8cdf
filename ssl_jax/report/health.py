"""Whether training went well, judged by more than the loss: a panel for each health metric, with what to look for."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from ssl_jax.health import alarms
from ssl_jax.report import charts
from ssl_jax.report.read import Record

PANEL_SIZE = (3.7, 1.9)  # inches of 72 units
MOST_WAITING = 10.0  # percent of the time


@dataclasses.dataclass(frozen=True)
class Panel:
    title: str
    value: str  # the last value; for a share of time, the mean
    meaning: str
    alarm: str  # what is wrong and what to do; "" if nothing is
    svg: str


def panels(record: Record) -> list[Panel]:
    """One panel for each health metric that was logged."""
    series = {name: record.series(name)[1] for name in ("embedding_std", "rankme", "embedding_dim", "rank_limit")}
    last = {name: float(values[-1]) for name, values in series.items() if len(values)}
    collapsed = alarms.collapse(last, chance_level=None)
    dim, rank_limit = last.get("embedding_dim"), last.get("rank_limit")
    made = [
        _panel(
            record,
            "embedding_std",
            "Embedding spread",
            "Standard deviation of each dimension of the normalized embeddings. Near 1/√dim they fill the sphere; "
            "near 0 all images look alike to the network.",
            level=(1 / math.sqrt(dim), f"full spread 1/√{dim:.0f} = {1 / math.sqrt(dim):.3g}") if dim else None,
            from_zero=True,
            alarm=lambda last: collapsed.get("embedding_std", ""),
        ),
        _panel(
            record,
            "rankme",
            "Effective rank (RankMe)",
            "How many dimensions a batch of embeddings uses. Higher means that more directions carry information.",
            level=(rank_limit, f"at most {rank_limit:.0f}") if rank_limit else None,
            from_zero=True,
            alarm=lambda last: collapsed.get("rankme", ""),
        ),
        _panel(
            record,
            "alignment",
            "Alignment",
            "Mean squared distance between two views of one image on the unit sphere: 0 if they are embedded alike, "
            "2 if they are unrelated.",
        ),
        _panel(
            record,
            "uniformity",
            "Uniformity",
            "How evenly different images cover the sphere: 0 if all are in one point, about −4 if spread evenly. "
            "Lower is more even.",
        ),
        _panel(
            record,
            "grad_norm",
            "Gradient norm",
            "Steady or slowly changing is healthy; a sudden rise announces a divergence.",
            alarm=lambda last: _skipped(record),
        ),
        _panel(
            record,
            "data_wait",
            "Waiting for data",
            "The share of the time in which the device had nothing to do; the number is the run's mean.",
            percent=True,
            from_zero=True,
            alarm=lambda mean: (
                "The device waits for data: raise config.data.threads or config.data.prefetch, or "
                "config.data.memory_bytes if the decoded images fit in memory."
                if mean > MOST_WAITING
                else ""
            ),
        ),
    ]
    return [panel for panel in made if panel is not None]


def _panel(
    record: Record,
    name: str,
    title: str,
    meaning: str,
    *,
    level: tuple[float, str] | None = None,
    percent: bool = False,
    from_zero: bool = False,
    alarm: Callable[[float], str] = lambda value: "",
) -> Panel | None:
    steps, values = record.series(name)
    values = 100 * values if percent else values
    finite = values[np.isfinite(values)]
    if len(finite) == 0:
        return None
    value = float(finite.mean() if percent else finite[-1])
    text = f"{value:.1f}%" if percent else f"{value:.3g}"
    svg = charts.curve(steps, values, level=level, percent=percent, from_zero=from_zero, size=PANEL_SIZE)
    return Panel(title, text.replace("-", "−"), meaning, alarm(value), svg)


def _skipped(record: Record) -> str:
    skipped = record.series("skipped_steps")[1]
    if not len(skipped) or not skipped[-1] > 0:
        return ""
    return (
        f"{skipped[-1]:.0f} updates were skipped because the loss or its gradient was not finite; "
        "lower config.optimizer.lr."
    )

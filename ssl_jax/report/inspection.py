"""The page about a data set: what `ssl_jax inspect` found, and what it means for a config."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import ticker

from ssl_jax.data.distribution import Histogram
from ssl_jax.data.inspection.facts import Duplicates, Inspection, Kind, Split
from ssl_jax.report import images, names, templates
from ssl_jax.report.palette import STYLES
from ssl_jax.report.svg import INKS, draw

TOGETHER = 3  # channels in one chart; more get one each
MOST_CHANNELS = 32  # that are drawn and listed
MOST_SIZES = 2000  # that are drawn
MOST_CLASSES, MOST_GROUPS, MOST_FILES = 40, 60, 200  # that are listed


def render(inspection: Inspection, start: str = "") -> str:
    """The page as HTML. `start`: the command that training starts with, or the lines of Python."""
    title = names.DATA_NAMES.get(inspection.name.split("/")[0], Path(inspection.name).name or inspection.name)
    return templates.render(
        "inspection.html.jinja",
        title=title,
        inspection=inspection,
        train=inspection.splits[0],
        start=start,
        lead=_lead(inspection),
        facts=_facts(inspection),
        warnings=[advice for advice in inspection.advice if advice.warning],
        hints=[advice for advice in inspection.advice if not advice.warning],
        samples=[(sample, images.data_uri(sample.picture)) for sample in inspection.samples],
        pixelated=_small(inspection),
        kinds=[(kind, _charts(kind)) for kind in inspection.splits[0].kinds],
        styles=STYLES,
        sizes=_sizes(inspection.splits[0]),
        labels=[(split.name, _classes(split)) for split in inspection.splits if split.labels],
        duplicates=[
            ("Equal in every pixel", inspection.equal, _groups(inspection.equal)),
            ("Almost the same picture", inspection.near, _groups(inspection.near)),
        ],
        most=dict(channels=MOST_CHANNELS, classes=MOST_CLASSES, groups=MOST_GROUPS, files=MOST_FILES),
    )


def _lead(inspection: Inspection) -> str:
    train = inspection.splits[0]
    if not train.kinds:
        return "None of the images can be read."
    warned = sum(advice.warning for advice in inspection.advice)
    kind = train.kinds[0]
    what = f"{train.read:,} images of {len(kind.channels)} {_plural('channel', len(kind.channels))}, {kind.dtype}"
    if not warned:
        return f"{what}. Nothing stands against training on them."
    return f"{what}. {warned} {_plural('thing', warned)} to look at before training."


def _facts(inspection: Inspection) -> list[tuple[str, str]]:
    """(term, text) of the page's head."""
    train = inspection.splits[0]
    found = [("Images", ", ".join(f"{split.count:,} in {split.name}" for split in inspection.splits))]
    if any(split.read + len(split.unreadable) < split.count for split in inspection.splits):
        found.append(("Looked at", ", ".join(f"{split.read:,} of {split.name}" for split in inspection.splits)))
    if train.sizes:
        size, share = train.sizes.commonest
        found.append(
            ("Sizes", f"{_size(train.sizes.least)} to {_size(train.sizes.most)}, median {_size(train.sizes.median)}")
        )
        found.append(("Commonest size", f"{_size(size)}, {100 * share:.3g}% of the images"))
    if train.labels:
        name, share = train.labels.majority
        count = len(train.labels.counts)
        found.append(("Classes", f"{count}; the largest, {names.short(name, 60)}, has {100 * share:.3g}%"))
    if train.groups:
        found.append(("Groups", f"{train.groups.count:,} of {train.groups.least:,} to {train.groups.most:,} images"))
    copies = sum(len(group.members) - 1 for group in inspection.equal)
    near = sum(len(group.members) - 1 for group in inspection.near)
    found.append(("Duplicates", f"{copies:,} equal, {near:,} nearly equal"))
    unreadable = sum(len(split.unreadable) for split in inspection.splits)
    found.append(("Unreadable", f"{unreadable:,}" if unreadable else "none"))
    return found


def _charts(kind: Kind) -> list[tuple[str, list[int], str]]:
    """(title, channels, SVG) of each chart of the values."""
    drawn = [number for number, channel in enumerate(kind.channels) if channel.histogram.counts][:MOST_CHANNELS]
    groups = [drawn] if len(drawn) <= TOGETHER else [[number] for number in drawn]
    return [
        (
            "Values" if len(group) == len(kind.channels) else f"Channel {group[0]}",
            group,
            _histograms([(kind.channels[number].histogram, STYLES[number % 3].color) for number in group]),
        )
        for group in groups
        if group
    ]


def _histograms(found: Sequence[tuple[Histogram, str]]) -> str:
    with draw((4.6, 2.3)) as drawing:
        axes = drawing.axes
        for histogram, color in found:
            shares = 100 * np.array(histogram.counts) / max(sum(histogram.counts), 1)
            shares = np.where(shares > 0, shares, np.nan)  # the axis is logarithmic
            axes.stairs(shares, histogram.edges, baseline=None, color=INKS[color], linewidth=1.6)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(ticker.LogLocator(numticks=4))
        axes.yaxis.set_minor_locator(ticker.NullLocator())
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}%")
        axes.xaxis.set_major_locator(ticker.MaxNLocator(nbins=5))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    return drawing.inline


def _sizes(split: Split) -> str:
    """The sizes as SVG: a disc for each, the larger, the more images have it. "" if all have one."""
    if split.sizes is None or len(split.sizes.counts) < 2:
        return ""
    found = split.sizes.counts[:MOST_SIZES]
    with draw((4.6, 3.4)) as drawing:
        axes = drawing.axes
        most = found[0][1]
        axes.grid(visible=True, axis="x")
        axes.scatter(
            [width for (_, width), _ in found],
            [height for (height, _), _ in found],
            s=[10 + 150 * count / most for _, count in found],
            color=INKS["pretrained"],
            alpha=0.35,
            linewidth=0,
        )
        axes.set_xlabel("width")
        axes.set_ylabel("height")
        sides = [side for size, _ in found for side in size]
        if max(sides) > 8 * min(sides):
            for axis in (axes.xaxis, axes.yaxis):
                axis.axes.set(**{f"{axis.axis_name}scale": "log"})
                axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=5))
                axis.set_minor_locator(ticker.NullLocator())
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return drawing.inline


def _classes(split: Split) -> list[tuple[str, int, float]]:
    """(class, images, percent of the largest class), the largest first."""
    assert split.labels is not None
    counts = sorted(split.labels.counts, key=lambda pair: -pair[1])
    most = max(counts[0][1], 1)
    return [(name, count, 100 * count / most) for name, count in counts]


def _groups(found: Sequence[Duplicates]) -> list[tuple[Duplicates, list[str]]]:
    return [(group, [images.data_uri(picture) for picture in group.pictures]) for group in found[:MOST_GROUPS]]


def _small(inspection: Inspection) -> str:
    """The CSS class of pictures: small images keep sharp pixels when they are scaled up."""
    shown = [sample.picture for sample in inspection.samples]
    return images.css_class(max(shown, key=lambda picture: max(picture.shape[:2]))[None]) if shown else ""


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]:,} × {size[1]:,}"


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"


def plain(inspection: Inspection) -> dict[str, Any]:
    """The inspection as JSON has it: no pictures, null in place of NaN. A size is [height, width]."""
    found = _plain(dataclasses.asdict(inspection))
    del found["samples"]
    for group in [*found["equal"], *found["near"]]:
        del group["pictures"]
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value

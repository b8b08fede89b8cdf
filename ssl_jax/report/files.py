"""The pictures of a run's page as files: charts as SVG, rows of images as PNG."""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure

from ssl_jax import paths
from ssl_jax.paths import AnyPath
from ssl_jax.report import health, images, names, page, patches, scatter, svg, templates
from ssl_jax.report.palette import LIGHT, STYLES
from ssl_jax.report.read import Record
from ssl_jax.workdir import files as workdir

FOLDER = "pictures"
CELL = 0.9  # inches an image
DPI = 200

Row = tuple[str, Sequence[UInt8[np.ndarray, "_ _ _"]]]  # title, images; rows may differ in image size


def write(record: Record) -> list[AnyPath]:
    """Writes workdir/pictures/*.svg and *.png: the pictures that the run has the data for."""
    folder = record.workdir / FOLDER
    paths.make_directory(folder)
    made = []
    for name, chart in _charts(record).items():
        made.append(folder / f"{name}.svg")
        workdir.write(made[-1], svg.standalone(chart))
    for name, rows in _rows(record).items():
        made.append(folder / f"{name}.png")
        with workdir.replacing(made[-1]) as file:
            _grid(rows).savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return made


def _charts(record: Record) -> dict[str, str]:
    made = page.charts_of(record)
    for panel in health.panels(record):
        made["health-" + re.sub(r"\W+", "-", panel.title.lower()).strip("-")] = panel.svg
    if groups := scatter.layout(record.embeddings):
        size = (scatter.WIDTH, scatter.HEIGHT)
        made["map"] = templates.render("map.svg.jinja", map=groups, map_size=size, styles=STYLES)
    return made


def _rows(record: Record) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    if record.views:
        pairs = zip(record.views["original"], record.views["views"], strict=True)
        found["views"] = [("", [original, *made]) for original, made in pairs]
    if record.pictures:
        found["drawn"] = [(title, list(made)) for title, made in record.pictures.items()]
    for kind, pictures in patches.figures(record.patches).items():
        found[f"patches-{kind}"] = [(title, list(made)) for title, made in pictures.items()]
    if len(record.embeddings.get("images", ())) >= 2:
        shown, labels, class_names = (record.embeddings[name] for name in ("images", "labels", "class_names"))
        found["neighbors"] = [
            (images.class_name(int(labels[query]), class_names), [shown[query], *(shown[i] for i in nearest)])
            for query, nearest in images.neighbors(record.embeddings)
        ]
    return found


def _grid(rows: Sequence[Row]) -> Figure:
    """A figure with a line of images for each row, its title at the left."""
    columns = max(len(made) for _, made in rows)
    figure = Figure(figsize=(CELL * (columns + 1.4), CELL * len(rows)), facecolor=LIGHT["panel"], layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for cell in axes.flat:
        cell.set_axis_off()
    for line, (title, made) in zip(axes, rows, strict=True):
        at = dict(transform=line[0].transAxes, ha="right", va="center", parse_math=False, color=LIGHT["ink"])
        line[0].text(-0.08, 0.5, names.short(title, 24), fontsize=9, **at)
        for cell, image in zip(line, made, strict=False):
            shown = images.displayable(image)
            cell.imshow(shown.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    return figure

"""One self-contained page about a run: what it was, what it was worth, and what its embeddings look like."""

import json
import shlex
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from ssl_jax import files
from ssl_jax.methods import METHODS
from ssl_jax.report import charts, health, images, read, scatter, scores

NAME = "report.html"
# As their authors write them.
DATA_NAMES = {
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "stl10": "STL-10",
    "imagenet2012": "ImageNet",
}


def write(workdir: str | Path) -> Path:
    """Writes `workdir`/report.html from the run's files; where one is missing, the page says which command makes it.

    Raises: FileNotFoundError if `workdir` is no directory.
    """
    record = read.read(Path(workdir))
    page = record.workdir / NAME
    # A file's name may hold bytes that are no UTF-8, which Python has as characters that UTF-8 lacks.
    with files.replacing(page) as file:
        file.write(render(record).encode("utf-8", "backslashreplace"))
    return page


def render(record: read.Record) -> str:
    """The page as HTML."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string((resources.files(__name__) / "page.html.jinja").read_text(encoding="utf-8"))
    rows = scores.rows(record.evaluation)
    embeddings = record.embeddings
    return template.render(
        title=_title(record),
        record=record,
        workdir=shlex.quote(str(record.workdir)),
        facts=_facts(record),
        progress=_progress(record),
        rows=rows,
        lead=scores.lead(rows),
        headline=scores.headline(rows),
        subjects=scores.SUBJECTS,
        variants=scores.variants(record.evaluation),
        score_dots=charts.dots(rows) if rows else "",
        legend=charts.legend(),
        loss=_loss(record),
        knn=_knn(record),
        health=health.panels(record),
        views=images.view_gallery(record.views),
        pictures=images.picture_rows(record.pictures),
        queries=images.neighbor_gallery(embeddings),
        agreement=images.agreement(embeddings),
        map=scatter.layout(embeddings),
        map_size=(scatter.WIDTH, scatter.HEIGHT),
        marks=scatter.MARKS,
        pixelated={
            "views": images.css_class(record.views.get("original")),
            "embeddings": images.css_class(embeddings.get("images")),
            "pictures": images.css_class(next(iter(record.pictures.values()), None)),
        },
        config=json.dumps(record.config, indent=2) if record.config else "",
        versions=record.facts.get("versions", {}),
        skipped=record.facts.get("skipped", {}),
    )


def _title(record: read.Record) -> str:
    method = record.config.get("method", {}).get("name")
    if not method:
        return f"A run in {record.workdir.name}"
    data = record.config.get("data", {})
    images = Path(data["path"]).name if data.get("path") else data.get("name", "")
    return f"{METHODS[method].__name__ if method in METHODS else method} on {DATA_NAMES.get(images, images)}"


def _facts(record: read.Record) -> list[tuple[str, str]]:
    """(term, what is known) of what was run and on what."""
    config, facts = record.config, record.facts
    data, model = config.get("data", {}), config.get("model", {})
    found = {
        "Images": [
            f"{facts['num_images']:,}" if "num_images" in facts else "",
            " × ".join(str(side) for side in (*data.get("image_size", ()), data.get("channels", "?"))) if data else "",
        ],
        "Backbone": [model.get("name", ""), *(f"{k} {v}" for k, v in model.items() if k != "name")],
        "Training": [
            f"{record.steps:,} steps of {config['batch_size']} images" if record.steps else "",
            config.get("compute_dtype", ""),
        ],
        "Time": [
            _duration(record.seconds) + " in steps" if record.seconds else "",
            f"{np.nanmedian(speed):,.0f} images/s" if len(speed := record.series("images_per_second")[1]) else "",
        ],
        "Ran on": [
            facts.get("devices") or "",
            f"{facts['processes']} processes" if facts.get("processes", 1) > 1 else "",
            f"jax {jax}" if (jax := facts.get("versions", {}).get("jax")) else "",
        ],
        "Repeat with": [
            f"seed {config['seed']}" if "seed" in config else "",
            f"commit {facts['commit']}" if facts.get("commit") else "",
        ],
    }
    lines = [(term, ", ".join(str(part) for part in parts if part)) for term, parts in found.items()]
    return [(term, text) for term, text in lines if text]


def _progress(record: read.Record) -> str:
    """A sentence for a run that has not reached its last step; "" for one that has."""
    if record.metrics and record.steps and record.last_step < record.steps:
        return (
            f"Step {record.last_step:,} of {record.steps:,} so far. If the run is not going on, the command that "
            "started it resumes it there."
        )
    return ""


def _loss(record: read.Record) -> dict[str, Any] | None:
    steps, values = record.series("loss")
    if not np.isfinite(values).any():
        return None
    chance = record.series("chance_level")[1]
    level = (float(chance[-1]), f"chance level {chance[-1]:.2f}") if len(chance) and np.isfinite(chance[-1]) else None
    return {
        "svg": charts.curve(steps, values, level=level),
        "last": float(values[np.isfinite(values)][-1]),
        "chance": level[0] if level else None,
    }


def _knn(record: read.Record) -> dict[str, Any] | None:
    steps, values = record.series("knn_top1")
    if not np.isfinite(values).any():
        return None
    return {
        "svg": charts.curve(steps, values, percent=True),
        "last": float(values[np.isfinite(values)][-1]),
        "options": record.config.get("online_knn", {}),
    }


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

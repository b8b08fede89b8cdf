"""The page about one run."""

import json
import shlex
from typing import Any

import numpy as np

from ssl_jax.report import charts, health, images, measured, names, scores, templates
from ssl_jax.report.read import Record


def render(record: Record) -> str:
    """The page as HTML."""
    return templates.render(
        "page.html.jinja",
        title=_title(record),
        record=record,
        workdir=shlex.quote(str(record.workdir)),
        facts=_facts(record),
        progress=_progress(record),
        lead=scores.lead(scores.rows(record.evaluation)),
        charts=charts_of(record),
        loss=_loss(record),
        knn=_knn(record),
        health=health.panels(record),
        views=images.view_gallery(record.views),
        pictures=images.picture_rows(record.pictures),
        config=json.dumps(record.config, indent=2) if record.config else "",
        versions=record.facts.get("versions", {}),
        skipped=record.facts.get("skipped", {}),
        **measured.values(record),
    )


def charts_of(record: Record) -> dict[str, str]:
    """name -> inline SVG of each chart that the run has the numbers for, without the health panels."""
    made = {}
    steps, values = record.series("loss")
    if np.isfinite(values).any():
        chance = _chance(record)
        level = None if chance is None else (chance, f"chance level {chance:.2f}")
        made["loss"] = charts.curve(steps, values, level=level)
    steps, values = record.series("knn_top1")
    if np.isfinite(values).any():
        made["knn"] = charts.curve(steps, values, percent=True)
    return made | measured.charts_of(record)


def _title(record: Record) -> str:
    method = names.method(record.config)
    return f"{method} on {names.data(record.config, record.facts)}" if method else f"A run in {record.workdir.name}"


def _facts(record: Record) -> list[tuple[str, str]]:
    """(term, what is known about it): what was run, and on what."""
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
            names.duration(record.seconds) + " in steps" if record.seconds else "",
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


def _progress(record: Record) -> str:
    """A sentence for a run that has not reached its last step; "" for one that has."""
    if record.metrics and record.steps and record.last_step < record.steps:
        return (
            f"Step {record.last_step:,} of {record.steps:,} so far. If the run has stopped, the "
            "command that started it goes on from there."
        )
    return ""


def _loss(record: Record) -> dict[str, float | None] | None:
    values = record.series("loss")[1]
    finite = values[np.isfinite(values)]
    return {"last": float(finite[-1]), "chance": _chance(record)} if len(finite) else None


def _chance(record: Record) -> float | None:
    level = record.series("chance_level")[1]
    return float(level[-1]) if len(level) and np.isfinite(level[-1]) else None


def _knn(record: Record) -> dict[str, Any] | None:
    values = record.series("knn_top1")[1]
    finite = values[np.isfinite(values)]
    return {"last": float(finite[-1]), "options": record.config.get("online_knn", {})} if len(finite) else None

"""What the pages of a run and of scores share: the scores of an evaluation, and what was kept of its test images."""

from collections.abc import Mapping
from typing import Any

from ssl_jax.report import charts, images, names, patches, scatter, scores
from ssl_jax.report.confusion import confusion
from ssl_jax.report.palette import STYLES, SUBJECT_STYLES
from ssl_jax.report.read import Record

BASELINES = {"random": "an untrained network", "pixels": "the raw pixels"}


def values(record: Record) -> dict[str, Any]:
    """What the templates worth, variants, patches, neighbors and map need, without `charts`."""
    rows, embeddings = scores.rows(record.evaluation), record.embeddings
    groups = scatter.layout(embeddings)
    return dict(
        rows=rows,
        measured=names.measured(record.evaluation.get("data", {})),
        headline=scores.headline(rows),
        subjects=subjects(record.evaluation),
        baselines=" and on ".join(text for key, text in BASELINES.items() if key in record.evaluation),
        subject_styles=SUBJECT_STYLES,
        variants=scores.variants(record.evaluation),
        largest=scores.largest_class(record.evaluation),
        by_class=any(score.differs for row in rows for score in row.scores.values()),
        by_labels={
            f"labels-{kind}": (scores.BY_LABELS[kind], {subject: scores.SUBJECTS[subject] for subject in lines})
            for kind, lines in scores.label_lines(record.evaluation).items()
        },
        confusion=confusion(record.predictions),
        patches={kind: images.picture_rows(made) for kind, made in patches.figures(record.patches).items()},
        pictured=len(record.patches.get("images", ())),
        queries=images.neighbor_gallery(embeddings),
        embedded=len(embeddings.get("images", ())),
        agreement=images.agreement(embeddings),
        map=groups,
        thumbnails=scatter.thumbnails(groups),
        sheet=images.sheet(embeddings["images"][: scatter.MOST]) if groups else "",
        sheet_columns=images.SHEET_COLUMNS,
        map_size=(scatter.WIDTH, scatter.HEIGHT),
        styles=STYLES,
        pixelated={
            "views": images.css_class(record.views.get("original")),
            "embeddings": images.css_class(embeddings.get("images")),
        },
    )


def subjects(evaluation: Mapping[str, Any]) -> dict[str, str]:
    """Key -> name of the subjects that were measured. Baselines may have been left out."""
    return {subject: name for subject, name in scores.SUBJECTS.items() if subject in evaluation}


def charts_of(record: Record) -> dict[str, str]:
    """name -> inline SVG of each chart of the scores that there are the numbers for."""
    made = {}
    if rows := scores.rows(record.evaluation):
        made["scores"] = charts.dots({row.name: row.scores for row in rows})
    for kind, lines in scores.label_lines(record.evaluation).items():
        every = scores.all_labels(record.evaluation)
        made[f"labels-{kind}"] = charts.label_efficiency(lines, all_labels=every)
    if confused := confusion(record.predictions):
        made["confusion"] = charts.matrix(confused.percents, confused.names)
    return made

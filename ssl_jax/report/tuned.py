"""The page about a fine-tuned network: what `ssl_jax finetune` measured."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Num

from ssl_jax.data.sources import spread
from ssl_jax.data.targets import MULTILABEL, REGRESSION
from ssl_jax.report import charts, names, templates
from ssl_jax.report.confusion import confusion
from ssl_jax.report.svg import INKS, draw

MOST_CHARTS, MOST_POINTS, MOST_OUTPUTS = 6, 1500, 200
MEASURES = {
    "map": "Average precision",
    "auroc": "Area under the ROC curve",
    "r2": "Explained variance",
    "mae": "Mean absolute error",
}
Tested = tuple[Float[np.ndarray, "images outputs"], Num[np.ndarray, "images *outputs"]]


def render(
    kind: str,
    outputs: Sequence[str],
    scores: Mapping[str, Any],
    facts: Mapping[str, Any],
    tested: Tested | None,
) -> str:
    """The page as HTML. kind, outputs, facts: kind, names and facts of a `Classifier`; the others are of `Tuned`."""
    train = facts["train"]
    found: Mapping[str, Mapping[str, float]] = scores.get("outputs", {})
    measures = [name for name in MEASURES if any(name in of for of in found.values())]
    confused = None
    if tested is not None and not found and kind not in (MULTILABEL, REGRESSION):
        predictions = {"labels": tested[1], "predictions": np.argmax(tested[0], axis=1), "class_names": outputs}
        confused = confusion({name: np.asarray(value) for name, value in predictions.items()})
    return templates.render(
        "tuned.html.jinja",
        title=names.DATA_NAMES.get(train["name"], Path(train["name"]).name or train["name"]),
        lead=_lead(kind, scores),
        facts=_facts(kind, outputs, scores, facts),
        measures=[(name, MEASURES[name]) for name in measures],
        found=dict(list(found.items())[:MOST_OUTPUTS]),
        left_out=max(len(found) - MOST_OUTPUTS, 0),
        unmeasured=[name for name in outputs if found and name not in found],
        confusion=confused,
        matrix=confused and charts.matrix(confused.percents, confused.names),
        scatter=_scatter(outputs, tested) if kind == REGRESSION and tested else [],
        rates=sorted(
            ((float(lr), error) for lr, error in scores.get("held_out_error", {}).items()), key=lambda one: one[0]
        ),
        chosen=scores.get("learning_rate"),
        error="mean squared error, in units of the variance" if kind == REGRESSION else "mean cross entropy",
    )


def _lead(kind: str, scores: Mapping[str, Any]) -> str:
    if "test_images" not in scores:
        return "There are no test images, so nothing is measured."
    tested = f"{scores['test_images']:,} test images"
    if "top1" in scores:
        return (
            f"{scores['top1']:.1f}% of {tested} are classified correctly. The largest class alone has "
            f"{scores['majority']:.1f}%."
        )
    if "map" in scores:
        return f"Mean average precision is {scores['map']:.1f}% on {tested}."
    if "r2" in scores:
        return f"{scores['r2']:.1f}% of the variance of {tested} is explained, on average over what is measured."
    return f"Nothing differs among {tested}, so nothing can be measured."


def _facts(
    kind: str, outputs: Sequence[str], scores: Mapping[str, Any], facts: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """(term, text) of the page's head."""
    what = {MULTILABEL: "labels of each image", REGRESSION: "measurements"}.get(kind, "classes")
    named = ", ".join(names.short(name, 30) for name in outputs[:5]) + (", ..." if len(outputs) > 5 else "")
    began: Mapping[str, Any] = facts.get("began_with", {})
    backbone = [str(began.get("model", {}).get("name", "")), str(began.get("method", ""))]
    found = [("Predicts", f"{len(outputs)} {what}: {named}"), ("Trained", facts.get("trained", ""))]
    found += [("Began with", ", ".join(filter(None, backbone)))]
    for called, source in (("Training images", facts["train"]), ("Test images", facts.get("test"))):
        if source:
            found.append((called, f"{source['images']:,} of {source['name']}, digest {source['digest']}"))
    found += [("Labelled images used", f"{scores['labels']:,}")]
    if "class_mean" in scores:
        found.append(("Mean over classes", f"{scores['class_mean']:.1f}%"))
    if "steps" in scores:
        found.append(("Steps", f"{scores['steps']:,} at learning rate {scores['learning_rate']:g}"))
    return [(term, text) for term, text in found if text]


def _scatter(outputs: Sequence[str], tested: Tested) -> list[tuple[str, str]]:
    """(measurement, SVG of the predictions over the truth) of the first measurements."""
    predicted, truth = tested
    return [
        (name, _points(truth[:, i], predicted[:, i]))
        for i, name in enumerate(outputs[:MOST_CHARTS])
        if np.isfinite(truth[:, i]).any()
    ]


def _points(truth: Float[np.ndarray, " images"], predicted: Float[np.ndarray, " images"]) -> str:
    known = np.flatnonzero(np.isfinite(truth))
    chosen = known[spread(len(known), MOST_POINTS)]
    with draw((4.2, 3.4)) as drawing:
        axes = drawing.axes
        axes.grid(visible=True, axis="x")
        ends = [float(truth[chosen].min()), float(truth[chosen].max())]
        axes.plot(ends, ends, color=INKS["muted"], linewidth=1.0)
        axes.scatter(truth[chosen], predicted[chosen], s=12, color=INKS["pretrained"], alpha=0.5, linewidth=0)
        axes.set_xlabel("truth")
        axes.set_ylabel("prediction")
    return drawing.inline

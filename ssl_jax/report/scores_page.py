"""The page about the scores of a backbone, whether it is of a run or of a file of weights."""

from collections.abc import Mapping
from typing import Any

from ssl_jax.report import backbone, measured, names, scores, templates
from ssl_jax.report.protocols import describe
from ssl_jax.report.read import Record

MOST_OUTPUTS = 100  # labels or measurements that are listed
# Metrics without labels that the page names, in its order -> (name, what it says). docs/metrics.md has their formulas.
METRICS = {
    "rankme": ("RankMe", "dimensions in use, by the entropy of the singular values"),
    "participation_ratio": ("Participation ratio", "dimensions in use, by the variances"),
    "embedding_std": ("Spread", "0 where all images have one direction, 1/√dim where directions are spread evenly"),
    "uniformity": ("Uniformity", "0 where all images have one direction, −4 for random directions"),
    "self_cluster": ("Self-clustering", "1 where all images are on one line, 0 for random directions"),
    "alpha_req": ("α of the spectrum", "how fast the variances fall; near 1 is good"),
    "two_nn": ("Intrinsic dimension", "by the distances to the nearest two images"),
}


def render(record: Record) -> str:
    """The page as HTML, of a record with an evaluation."""
    rows = scores.rows(record.evaluation)
    metrics = record.evaluation.get("metrics", {})
    data = record.evaluation.get("data", {})
    return templates.render(
        "scores.html.jinja",
        title=f"Scores on {names.measured(data) or 'images'}",
        lead=scores.best_lead(rows) or _without_scores(record, rows),
        facts=_facts(record.evaluation),
        charts=measured.charts_of(record),
        outputs=_outputs(record.evaluation),
        most_outputs=MOST_OUTPUTS,
        metrics=_metrics(metrics),
        networks=[_network(name) for name in metrics],
        evaluate="--baselines=random,pixels",
        unreadable=record.unreadable,
        **measured.values(record),
    )


def _without_scores(record: Record, rows: list[scores.Row]) -> str:
    if rows:
        return f"{len(rows)} scores of a backbone."
    return "The images have no labels to measure against; what can be said of the features without is below."


def _facts(evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    data, found = evaluation.get("data", {}), backbone.facts(evaluation.get("backbone", {}))
    if sha256 := evaluation.get("backbone_sha256"):
        found.append(("SHA-256 of the weights", f"{sha256[:12]}…"))
    if "train_images" in data:
        parts = [f"{data['train_images']:,} to learn from, {data['test_images']:,} for testing", data["name"]]
        found.append(("Images", ", ".join([*parts, f"digest {data['digest']}"])))
    if classes := data.get("classes"):
        largest = scores.largest_class(evaluation)
        share = f"; the largest, {largest[0]}, has {largest[1]:.1f}% of the test images" if largest else ""
        found.append(("Classes", f"{len(classes):,}{share}"))
    left_out = [name for key, name in scores.SUBJECTS.items() if key not in evaluation and "pretrained" in evaluation]
    if left_out:
        found.append(("Not measured", ", ".join(left_out)))
    return found


def _metrics(metrics: Mapping[str, Mapping[str, float]]) -> list[tuple[str, str, list[str]]]:
    """(name, what it says, value for each network) of each metric that a network has."""
    known = {name for of_network in metrics.values() for name in of_network}
    return [
        (name, says, [f"{of_network[key]:.3g}" if key in of_network else "–" for of_network in metrics.values()])
        for key, (name, says) in METRICS.items()
        if key in known
    ]


def _network(name: str) -> str:
    variant = name.removeprefix("random, ")
    return scores.SUBJECTS.get(name) or f"Random, {scores.VARIANTS.get(variant, variant)}"


def _outputs(evaluation: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """(title, rows of (label or measurement, value for each subject)) of each score that is a mean over several."""
    subjects = measured.subjects(evaluation)
    found = []
    for protocol, entry in evaluation.get("pretrained", {}).items():
        name = describe(protocol)[0]
        for key, title, show in (
            ("outputs", f"{name}, in percent", "{:.1f}"),
            ("mean_absolute_error", "Mean absolute error", "{:.4g}"),
        ):
            of = [evaluation[subject].get(protocol, {}).get(key, {}) for subject in subjects]
            if key in entry:
                rows = [(o, [show.format(values[o]) if o in values else "–" for values in of]) for o in entry[key]]
                found.append((title, rows))
    return found

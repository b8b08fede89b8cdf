"""The page that compares several runs."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from ssl_jax.report import charts, names, scores, templates
from ssl_jax.report.groups import Group, differences, group_runs, measured_on
from ssl_jax.report.palette import STYLES
from ssl_jax.report.protocols import describe
from ssl_jax.report.read import Record
from ssl_jax.report.scores import Score


@dataclasses.dataclass(frozen=True)
class Table:
    """What was measured on one data set.

    protocols: key -> name.
    scores: group's name -> protocol -> score.
    baselines: (name, protocol -> score) of untrained networks and raw pixels.
    dots: inline SVG.
    by_labels: (name, the groups in it, inline SVG) of each chart over the number of labels.
    largest: see `scores.largest_class`.
    """

    data: str
    protocols: Mapping[str, str]
    scores: Mapping[str, Mapping[str, Score]]
    baselines: Sequence[tuple[str, Mapping[str, Score]]]
    dots: str
    by_labels: Sequence[tuple[str, Sequence[str], str]]
    largest: tuple[str, float] | None

    @property
    def by_class(self) -> bool:
        """Whether some score has a mean over classes that differs from its accuracy."""
        found = [*self.scores.values(), *(scores for _, scores in self.baselines)]
        return any(score.differs for scores in found for score in scores.values())

    def best(self, protocol: str) -> float:
        """The highest mean of the pre-trained groups, rounded as it is printed."""
        return max(round(found[protocol].mean, 1) for found in self.scores.values() if protocol in found)


def render(records: Sequence[Record]) -> str:
    """The page as HTML."""
    groups = group_runs(records)
    tables = [_table(groups, data) for data in dict.fromkeys(map(measured_on, records)) if data is not None]
    return templates.render(
        "comparison.html.jinja",
        title=_title(groups),
        lead=_lead(tables[0]) if tables else "",
        records=records,
        groups=groups,
        names={group.name: group.name for group in groups},
        styles={group.name: group.style for group in groups},
        shared_styles=len(groups) > len(STYLES),
        tables=tables,
        losses=_losses(groups),
        knn=_curves(groups, "knn_top1", percent=True),
        differences=differences(groups),
        runs=[_run(record, group) for group in groups for record in group.records],
    )


def _title(groups: Sequence[Group]) -> str:
    data = {names.data(record.config, record.facts) for group in groups for record in group.records}
    on = f" on {data.pop()}" if len(data) == 1 and "" not in data else ""
    if len(groups) == 1:
        return f"{groups[0].name}{on}, {groups[0].seeds}"
    called = [group.name for group in groups]
    return (", ".join(called[:-1]) + f" and {called[-1]}{on}") if len(groups) <= 4 else f"{len(groups)} settings{on}"


def _table(groups: Sequence[Group], data: str) -> Table:
    of = {group.name: found for group in groups if (found := group.scores("pretrained", data))}
    styles = {group.name: group.style for group in groups}
    protocols = {protocol: describe(protocol)[0] for found in of.values() for protocol in found}
    rows = {
        name: {group: found[protocol] for group, found in of.items() if protocol in found}
        for protocol, name in protocols.items()
    }
    evaluation = next(r.evaluation for g in groups for r in g.records if measured_on(r) == data)
    every = scores.all_labels(evaluation)
    by_labels = []
    for kind, name in scores.BY_LABELS.items():
        lines = {group: scores.by_labels(found, kind, every) for group, found in of.items()}
        if lines := {group: points for group, points in lines.items() if len(points) >= 2}:
            by_labels.append((name, list(lines), charts.label_efficiency(lines, styles, all_labels=every)))
    return Table(
        data=names.measured(evaluation.get("data", {})),
        protocols=protocols,
        scores=of,
        baselines=_baselines(groups, data),
        dots=charts.dots(rows, styles),
        by_labels=by_labels,
        largest=scores.largest_class(evaluation),
    )


def _baselines(groups: Sequence[Group], data: str) -> list[tuple[str, Mapping[str, Score]]]:
    """(name, protocol -> score) of each baseline. Groups with the same network or images share a baseline."""
    found: dict[str, list[Mapping[str, Score]]] = {}
    for group in groups:
        size = "×".join(map(str, group.config.get("data", {}).get("image_size", ())))
        model = group.config.get("model", {}).get("name", "")
        for subject, detail in (("random", f"{model} {size}"), ("pixels", size)):
            name = f"{scores.SUBJECTS[subject]}, {detail}" if detail.strip() else scores.SUBJECTS[subject]
            runs = [scores.subject_scores(r.evaluation, subject) for r in group.records if measured_on(r) == data]
            found.setdefault(name, []).extend(run for run in runs if run)
    return [(name, scores.over_seeds(runs)) for name, runs in sorted(found.items()) if runs]


def _lead(table: Table) -> str:
    """A sentence: which group is ahead with the fewest labels, and whether by more than the spread."""
    shared = [p for p in table.protocols if sum(p in found for found in table.scores.values()) > 1]
    linear = [protocol for protocol in shared if protocol.startswith("linear/")]
    if not shared:
        return ""
    protocol = (linear or shared)[0]
    ranked = sorted(
        ((found[protocol], name) for name, found in table.scores.items() if protocol in found),
        key=lambda pair: -pair[0].mean,
    )
    (first, leader), (second, follower) = ranked[:2]
    points = first.mean - second.mean
    within = ", no more than the spread" if points <= max(first.std, second.std) else ""
    asked = describe(protocol)[1]
    return (
        f"Judged by {asked}, {leader} is ahead: right on {first.mean:.1f}% of the test images, "
        f"{points:.1f} points above {follower}{within}."
    )


def _losses(groups: Sequence[Group]) -> list[tuple[str, list[str], str]]:
    """(method, its groups, inline SVG) of each method. The losses of different methods are not comparable."""
    found = []
    for method in dict.fromkeys(names.method(group.config) for group in groups):
        made = _curves([group for group in groups if names.method(group.config) == method], "loss")
        found += [(method, *made)] if made else []
    return found


def _curves(groups: Sequence[Group], metric: str, *, percent: bool = False) -> tuple[list[str], str] | None:
    """(the groups that have the metric, inline SVG)."""
    lines = {group.name: (line, group.style) for group in groups if (line := group.line(metric))}
    return (list(lines), charts.curves(list(lines.values()), percent=percent)) if lines else None


def _run(record: Record, group: Group) -> dict[str, str]:
    speed = record.series("images_per_second")[1]
    return {
        "Setting": group.name,
        "Workdir": str(record.workdir),
        "Seed": str(record.config.get("seed", "")),
        "Steps": f"{record.last_step:,} of {record.steps:,}" if record.steps else f"{record.last_step:,}",
        "In steps": names.duration(record.seconds) if record.seconds else "",
        "Images/s": f"{np.nanmedian(speed):,.0f}" if np.isfinite(speed).any() else "",
        "Ran on": record.facts.get("devices") or "",
        "Commit": record.facts.get("commit") or "",
    }

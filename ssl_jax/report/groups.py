"""Groups of runs to be compared: runs that differ in nothing but the seed are one group."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ssl_jax.report import names, scores
from ssl_jax.report.charts import Line
from ssl_jax.report.palette import STYLES, Style
from ssl_jax.report.read import Record
from ssl_jax.report.scores import Score


@dataclasses.dataclass(frozen=True)
class Group:
    name: str  # unique within a comparison
    style: Style
    records: Sequence[Record]

    @property
    def config(self) -> Mapping[str, Any]:
        """The config of all its runs, but for the seed."""
        return self.records[0].config

    @property
    def seeds(self) -> str:
        return f"{len(self.records)} seeds" if len(self.records) > 1 else "1 seed"

    def line(self, metric: str) -> Line | None:
        """Mean, least and greatest value over the runs with the metric, at steps that all of them have; None if no run
        has it.

        A value that is not finite in one run leaves a gap.
        """
        series = [dict(zip(*(column.tolist() for column in r.series(metric)), strict=True)) for r in self.records]
        series = [run for run in series if run]
        if not series:
            return None
        steps = sorted(set.intersection(*map(set, series)))
        values = np.array([[run[step] for step in steps] for run in series], np.float64)  # [runs, steps]
        if not np.isfinite(values).any():
            return None
        at = np.array(steps, np.int64)
        if len(series) == 1:
            return Line(at, values[0])
        return Line(at, values.mean(axis=0), values.min(axis=0), values.max(axis=0))

    def scores(self, subject: str, data: str) -> dict[str, Score]:
        """protocol -> score of a subject of evaluation.json, over the runs that were measured on `data`."""
        return scores.over_seeds(
            [scores.subject_scores(r.evaluation, subject) for r in self.records if measured_on(r) == data]
        )


def group_runs(records: Sequence[Record]) -> list[Group]:
    """The groups, in the order of their first runs.

    A group is named after its method. If several groups share the method, the workdir of the first run is added.
    """
    found: dict[str, list[Record]] = {}
    for record in records:
        alike = {key: value for key, value in record.config.items() if key != "seed"}
        found.setdefault(json.dumps(alike, sort_keys=True) if alike else str(record.workdir), []).append(record)
    firsts = [members[0] for members in found.values()]
    called = _called(firsts)
    return [
        Group(name, STYLES[i % len(STYLES)], members)
        for i, (name, members) in enumerate(zip(called, found.values(), strict=True))
    ]


def measured_on(record: Record) -> str | None:
    """Name of the data that evaluation.json is about; "" if it does not say, None if nothing was measured."""
    return record.evaluation.get("data", {}).get("name", "") if record.evaluation.get("pretrained") else None


def _called(records: Sequence[Record]) -> list[str]:
    methods = [names.method(record.config) for record in records]
    folders = [record.workdir.name for record in records]
    called = []
    for record, method, folder in zip(records, methods, folders, strict=True):
        where = folder if folders.count(folder) == 1 else str(record.workdir)
        called.append(method if method and methods.count(method) == 1 else f"{method} ({where})" if method else where)
    return called


def differences(groups: Sequence[Group]) -> list[tuple[str, list[str]]]:
    """(key, its value in each group's config) of the keys whose values differ; "" where a config lacks the key."""
    flat = [_flatten(group.config) for group in groups]
    keys = sorted(set().union(*flat))
    return [(key, row) for key in keys if len(set(row := [values.get(key, "") for values in flat])) > 1]


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """ "optimizer.lr" -> "0.1", but for the seed. Empty sections have no keys."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        elif prefix + key != "seed":
            flat[prefix + key] = json.dumps(value) if not isinstance(value, str) or not value else value
    return flat

"""Augmentations: what each operation of the views is worth, if it is left out and if it is alone.

The question of Chen et al. 2020, arXiv:2002.05709, section 3.1, and Grill et al. 2020, arXiv:2006.07733, section 5.
"""

import dataclasses
from typing import Any

from matplotlib.figure import Figure
from ml_collections import ConfigDict

from ssl_jax import config as configs
from ssl_jax.config.kinds import JITTERED
from ssl_jax.data.augment import Augmentation
from ssl_jax.studies import pictures
from ssl_jax.studies.base import Plan
from ssl_jax.studies.intervals import Comparison, compare
from ssl_jax.studies.measure import Table, protocols
from ssl_jax.studies.pretrainings import SUPERVISED, supervised_like
from ssl_jax.studies.subjects import Data, Pixels, Pretrained, Untrained, resolve

# Operation -> the fields of Augmentation that turn it off.
OFF: dict[str, dict[str, Any]] = {
    "crop": {"crop_area": (1.0, 1.0), "crop_aspect": (1.0, 1.0)},
    **{
        name: {name: 0.0}
        for name in (
            *("flip", "flip_vertical", "quarter_turns", "rotate", *JITTERED),
            *("photometric", "grayscale", "blur", "solarize", "noise", "channel_drop"),
        )
    },
    "policy": {"policy": ""},
}
DEFAULTS = {field.name: field.default for field in dataclasses.fields(Augmentation)}


def plan(config: ConfigDict) -> Plan:
    pretraining = resolve(config.pretraining, config.overrides)
    used = operations(pretraining)
    chosen = tuple(config.operations) or used
    absent = [name for name in chosen if name not in used]
    if absent:
        raise configs.ConfigError(f"config.operations: {absent} are not among the views' operations, {', '.join(used)}")
    subjects = [Pretrained("all", Data(pretraining))]
    for name in chosen:
        subjects.append(Pretrained(f"without {name}", Data(without(pretraining, [name]))))
        if len(used) > 1:
            rest = [other for other in used if other != name]
            subjects.append(Pretrained(f"{name} alone", Data(without(pretraining, rest))))
    subjects.append(Pretrained("none", Data(without(pretraining, used))))
    baselines = (
        supervised_like(config, pretraining),
        Untrained("random", Data(pretraining)),
        Pixels(),
    )
    names = {"all": "all operations", "none": "no operation", "supervised": SUPERVISED}
    return Plan((*subjects, *baselines), Data(pretraining), names)


def operations(pretraining: ConfigDict) -> tuple[str, ...]:
    """The operations that any kind of view has. Strengths of jitter count only if its probability is above 0."""

    def has(view: dict[str, Any], name: str) -> bool:
        view = DEFAULTS | view
        jittered = name not in JITTERED or view["jitter"] > 0
        return jittered and any(view[key] != off for key, off in OFF[name].items())

    views = configs.plain(pretraining.augment).values()
    return tuple(name for name in OFF if any(has(view, name) for view in views))


def without(pretraining: ConfigDict, names: Any) -> ConfigDict:
    """The config whose views have none of the named operations."""
    config = pretraining.copy_and_resolve_references()
    with config.unlocked():
        for view in config.augment.values():
            for name in names:
                view.update(OFF[name])
    return config


def conclude(config: ConfigDict, plan: Plan, table: Table) -> list[str | Comparison]:
    """For each protocol: all operations against each left out, each alone against none, all against the baselines."""
    parts: list[str | Comparison] = []
    for protocol in protocols(config):
        values = {name: rows[protocol][:, -1] for name, rows in table.items() if protocol in rows}
        pairs = [("all", name) for name in values if name.startswith("without ")]
        pairs += [(name, "none") for name in values if name.endswith(" alone")]
        pairs += [("all", name) for name in ("supervised", "random", "pixels") if name in values]
        parts += [compare(plan.called(a), plan.called(b), values[a], values[b], f"({protocol})") for a, b in pairs]
    return parts


def picture(config: ConfigDict, plan: Plan, table: Table) -> Figure:
    return pictures.ranked(config, plan, table)

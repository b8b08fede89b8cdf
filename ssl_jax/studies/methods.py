"""Methods: several under one budget, each beside the untrained network that it begins with."""

import hashlib

import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from ssl_jax import config as configs
from ssl_jax.studies import pictures
from ssl_jax.studies.base import Plan
from ssl_jax.studies.intervals import Comparison, compare
from ssl_jax.studies.measure import Table, protocols
from ssl_jax.studies.subjects import Data, Pixels, Pretrained, Subject, Untrained, resolve

IMAGES = ("name", "path", "test_split", "image_size", "channels")  # keys of config.data that all must share


def plan(config: ConfigDict) -> Plan:
    if not config.methods:
        raise configs.ConfigError("config.methods is empty; name pre-training configs, ('simclr:tiny', ...)")
    found = {file: resolve(file, config.overrides) for file in config.methods}
    first = found[config.methods[0]]
    trained: dict[str, Subject] = {}
    untrained: dict[str, Subject] = {}
    for file, pretraining in found.items():
        name = pretraining.method.name
        others = [key for key in IMAGES if first.data[key] != pretraining.data[key]]
        if others:
            raise configs.ConfigError(
                f"{file} has another config.data.{others[0]} than {config.methods[0]}; all must have the same"
            )
        if name in trained:
            raise configs.ConfigError(f"config.methods names method {name} twice; compare these two in another study")
        trained[name] = Pretrained(name, Data(pretraining))
        untrained.setdefault(network(pretraining), Untrained(network(pretraining), Data(pretraining)))
    return Plan((*trained.values(), *untrained.values(), Pixels()), Data(first))


def network(pretraining: ConfigDict) -> str:
    """The name of an untrained network, the same for all methods that begin with it."""
    settings = configs.dumps(ConfigDict({"model": pretraining.model, "dtype": pretraining.compute_dtype}))
    return f"random {pretraining.model.name} {hashlib.sha256(settings.encode()).hexdigest()[:4]}"


def conclude(config: ConfigDict, plan: Plan, table: Table) -> list[str | Comparison]:
    """For each protocol: each method against its untrained network, and the best against the next and the pixels."""
    parts: list[str | Comparison] = []
    trained = [subject for subject in plan.subjects if isinstance(subject, Pretrained)]
    for protocol in protocols(config):
        values = {name: rows[protocol][:, -1] for name, rows in table.items() if protocol in rows}
        ranking = sorted((s.name for s in trained), key=lambda name: -np.mean(values[name]))
        pairs = [(s.name, network(s.data.config)) for s in trained]
        pairs += [(ranking[0], other) for other in (*ranking[1:2], "pixels") if other in values]
        parts += [compare(plan.called(a), plan.called(b), values[a], values[b], f"({protocol})") for a, b in pairs]
    return parts


def picture(config: ConfigDict, plan: Plan, table: Table) -> Figure:
    return pictures.ranked(config, plan, table)

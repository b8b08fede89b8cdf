"""What several studies compare, and how they say it."""

from collections.abc import Iterable

import numpy as np
from ml_collections import ConfigDict

from ssl_jax import config as configs
from ssl_jax.studies.base import Plan
from ssl_jax.studies.intervals import Comparison, compare, listed
from ssl_jax.studies.measure import Protocol, Table
from ssl_jax.studies.subjects import Data, Pixels, Pretrained, Untrained, resolve

SUPERVISED = "supervised pre-training on all labels"


def against_baselines(config: ConfigDict) -> Plan:
    """Compares config.pretraining with supervised pre-training on the same images, random initialization and pixels."""
    ssl = resolve(config.pretraining, config.overrides)
    images = Data(ssl)
    subjects = (
        Pretrained("pretrained", images),
        supervised_like(config, ssl),
        Untrained("random", images),
        Pixels(),
    )
    return Plan(subjects, images, {"pretrained": ssl.method.name, "supervised": SUPERVISED})


def supervised_like(config: ConfigDict, ssl: ConfigDict) -> Pretrained:
    """The pre-training config.supervised, with the network and the images of `ssl`."""
    supervised = resolve(config.supervised, config.supervised_overrides)
    with supervised.unlocked():
        for key in ("data", "model", "compute_dtype"):
            supervised[key] = ssl[key]
    return Pretrained("supervised", Data(supervised))


def check_same_network(target: ConfigDict, **others: ConfigDict) -> None:
    """Raises: ConfigError if one of the pre-trainings has another network or another size of images than `target`."""
    for name, other in others.items():
        differences = configs.differences(other.model, target.model)
        differences += [
            f"data.{key}: {other.data[key]} -> {target.data[key]}"
            for key in ("image_size", "channels")
            if other.data[key] != target.data[key]
        ]
        if differences:
            raise configs.ConfigError(
                f"{name} and target must have the same network and image size, but they differ: {differences}"
            )


def differences(
    config: ConfigDict, plan: Plan, table: Table, pairs: Iterable[tuple[str, str]]
) -> list[str | Comparison]:
    """A comparison of each pair of subjects, by linear probes and fine-tuned, averaged over the numbers of labels."""
    parts: list[str | Comparison] = []
    for name, how in (("linear", "by a linear probe"), ("finetune", "fine-tuned")):
        labels = config[name].labels_per_class
        if not labels:
            continue
        where = f"{how} with {listed(labels)} labels per class" + (", averaged" if len(labels) > 1 else "")
        for ours, theirs in pairs:
            first, second = (
                np.mean([table[s][Protocol(name, n)][:, -1] for n in labels], axis=0) for s in (ours, theirs)
            )
            parts.append(compare(plan.called(ours), plan.called(theirs), first, second, where))
    return parts

"""Domain adaptation: what labels of a source, and unlabelled images of the target, are worth if target labels are few.

Compared on the target: no pre-training, supervised pre-training on the source, self-supervised pre-training on the
target, and the first followed by the second (the order is that of Reed et al. 2021, arXiv:2103.12718, section 3,
hierarchical pre-training). Bounds: supervised pre-training on all labels of the target, and raw pixels.
"""

import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from ssl_jax import config as configs
from ssl_jax.studies import pictures
from ssl_jax.studies.base import Plan
from ssl_jax.studies.intervals import compare, listed
from ssl_jax.studies.measure import Protocol, Table
from ssl_jax.studies.subjects import Data, Pixels, Pretrained, Untrained, resolve

# Each pair differs in one thing: unlabelled target images, or the labelled source.
COMPARED = (("target", "random"), ("source", "random"), ("both", "source"), ("both", "target"), ("both", "supervised"))


def plan(config: ConfigDict) -> Plan:
    source = resolve(config.source, config.source_overrides)
    target = resolve(config.target, config.target_overrides)
    supervised = resolve(config.supervised, config.supervised_overrides)
    for name, other in (("source", source), ("supervised", supervised)):
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
    here = Data(target, config.least_images)
    first = Pretrained("source", Data(source))
    subjects = (
        Untrained("random", here),
        first,
        Pretrained("target", here),
        Pretrained("both", here, begin=first),
        Pretrained("supervised", Data(supervised, config.least_images)),
        Pixels(),
    )
    names = {
        "source": f"supervised pre-training on {source.data.name}",
        "target": f"{target.method.name} on the target",
        "both": f"supervised pre-training on {source.data.name}, then {target.method.name} on the target",
        "supervised": "supervised pre-training on all labels of the target",
    }
    return Plan(subjects, here, names)


def conclude(config: ConfigDict, plan: Plan, table: Table) -> list[str]:
    """The differences of COMPARED, averaged over the numbers of labels."""
    sentences = []
    for name, how in (("linear", "by a linear probe"), ("finetune", "fine-tuned")):
        labels = config[name].labels_per_class
        if not labels:
            continue
        where = f"{how} with {listed(labels)} labels per class" + (", averaged" if len(labels) > 1 else "")
        for ours, theirs in COMPARED:
            first, second = (
                np.mean([table[s][Protocol(name, n)][:, -1] for n in labels], axis=0) for s in (ours, theirs)
            )
            sentences.append(compare(plan.called(ours), plan.called(theirs), first, second, where))
    return sentences


def picture(config: ConfigDict, plan: Plan, table: Table) -> Figure:
    return pictures.over_labels(config, plan, table)

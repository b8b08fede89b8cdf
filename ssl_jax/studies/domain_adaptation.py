"""Domain adaptation: what labels of a source, and unlabelled images of the target, are worth if target labels are few.

Compared on the target: no pre-training, supervised pre-training on the source, self-supervised pre-training on the
target, and the first followed by the second (the order is that of Reed et al. 2021, arXiv:2103.12718, section 3,
hierarchical pre-training). Bounds: supervised pre-training on all labels of the target, and raw pixels.
"""

from matplotlib.figure import Figure
from ml_collections import ConfigDict

from ssl_jax.studies import pictures
from ssl_jax.studies.base import Plan
from ssl_jax.studies.intervals import Comparison
from ssl_jax.studies.measure import Table
from ssl_jax.studies.pretrainings import check_same_network, differences
from ssl_jax.studies.subjects import Data, Pixels, Pretrained, Untrained, resolve

# Each pair differs in one thing: unlabelled target images, or the labelled source.
COMPARED = (("target", "random"), ("source", "random"), ("both", "source"), ("both", "target"), ("both", "supervised"))


def plan(config: ConfigDict) -> Plan:
    source = resolve(config.source, config.source_overrides)
    target = resolve(config.target, config.target_overrides)
    supervised = resolve(config.supervised, config.supervised_overrides)
    check_same_network(target, source=source, supervised=supervised)
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


def conclude(config: ConfigDict, plan: Plan, table: Table) -> list[str | Comparison]:
    return differences(config, plan, table, COMPARED)


def picture(config: ConfigDict, plan: Plan, table: Table) -> Figure:
    return pictures.over_labels(config, plan, table)

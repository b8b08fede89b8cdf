"""Init: which weights to start with, where some were trained on other images already.

Compared on one's own images: random weights, the given ones as they are, self-supervised pre-training that begins with
random weights, the same that begins with the given ones (Reed et al. 2021, arXiv:2103.12718, hierarchical
pre-training), supervised pre-training on all labels, raw pixels.
"""

import dataclasses

from matplotlib.figure import Figure
from ml_collections import ConfigDict

from ssl_jax import config as configs
from ssl_jax.studies import pictures
from ssl_jax.studies.base import Plan
from ssl_jax.studies.intervals import Comparison
from ssl_jax.studies.measure import Table
from ssl_jax.studies.pretrainings import SUPERVISED, check_same_network, differences, supervised_like
from ssl_jax.studies.subjects import Data, Pixels, Pretrained, Subject, Untrained, Weights, resolve
from ssl_jax.training import beginning, build, reading
from ssl_jax.weights import Backbone

COMPARED = (
    ("given", "random"),
    ("pretrained", "random"),
    ("pretrained", "given"),
    ("continued", "given"),
    ("continued", "pretrained"),
    ("continued", "supervised"),
)


def plan(config: ConfigDict) -> Plan:
    ssl = resolve(config.pretraining, config.overrides)
    images = Data(ssl)
    given, continued, origin = starts(config, ssl)
    subjects = (
        Untrained("random", images),
        given,
        Pretrained("pretrained", images),
        continued,
        supervised_like(config, ssl),
        Pixels(),
    )
    method = ssl.method.name
    names = {
        "given": origin,
        "pretrained": f"{method} from random weights",
        "continued": f"{method} from {origin}",
        "supervised": SUPERVISED,
    }
    return Plan(subjects, images, names)


def starts(config: ConfigDict, ssl: ConfigDict) -> tuple[Subject, Pretrained, str]:
    """(the given weights, the pre-training `ssl` that begins with them, their name in sentences)

    Raises: ConfigError for weights that are not there or not of the network of `ssl`.
    """
    if config.begin:
        begun = ssl.copy_and_resolve_references()
        begun.begin = config.begin
        return Weights("given", read(begun)), Pretrained("continued", Data(begun)), f"the weights {config.begin}"
    made = resolve(config.given, config.given_overrides)
    check_same_network(ssl, given=made)
    given = Pretrained("given", Data(made))
    return (
        given,
        Pretrained("continued", Data(ssl), begin=given),
        f"{made.method.name} pre-training on {made.data.name}",
    )


def read(pretraining: ConfigDict) -> Backbone:
    """The weights that the pre-training begins with."""
    config = configs.parse(pretraining)
    backbone = beginning.load(config, build.Given())
    if backbone.mean:
        return backbone
    # The file does not say how its images were normalized.
    return dataclasses.replace(backbone, **dataclasses.asdict(reading.normalization(config)))


def conclude(config: ConfigDict, plan: Plan, table: Table) -> list[str | Comparison]:
    """The differences of COMPARED, averaged over the numbers of labels."""
    return differences(config, plan, table, COMPARED)


def picture(config: ConfigDict, plan: Plan, table: Table) -> Figure:
    return pictures.over_labels(config, plan, table)

"""What several studies compare a pre-training with."""

from ml_collections import ConfigDict

from ssl_jax.studies.base import Plan
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

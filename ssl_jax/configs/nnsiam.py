"""NNSiam: SimSiam (arXiv:2011.10566) with the neighbors of NNCLR (Dwibedi et al. 2021, arXiv:2104.14548)."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.method = dict(name="nnsiam", projector=(256, 256, 256), predictor=(64, 256), queue_size=4096)
    config.augment = dict(view1=recipes.tiny_view(), view2=recipes.tiny_view())
    # SGD, as in SimSiam's paper. With Adam SimSiam is prone to collapse.
    config.optimizer = dict(name="sgd", lr=0.3, weight_decay=5e-4, warmup_steps=30, final_lr=0.0)
    return config


def cifar_r18() -> ConfigDict:
    """solo-learn's settings; no result is known. The queue is longer than the data set."""
    config = recipes.cifar_r18()
    config.method = dict(name="nnsiam", projector=(2048, 2048, 2048), predictor=(4096, 2048), queue_size=65_536)
    config.augment = dict(view1=recipes.CIFAR_1, view2=recipes.CIFAR_2)
    config.optimizer = dict(
        name="sgd",
        lr=recipes.lr_for(config, 0.5),
        weight_decay=1e-5,
        warmup_steps=recipes.CIFAR_WARMUP,
        final_lr=0.0,
    )
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "cifar_r18": cifar_r18}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("nnsiam", scale, SCALES)

"""All4One: Estepa et al. 2023, arXiv:2303.09417."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.method = dict(
        name="all4one", projector=(256, 256, 64), predictor=(256, 64), layers=1, heads=4, queue_size=8192
    )
    config.augment = dict(view1=recipes.tiny_view(), view2=recipes.tiny_view())
    return config


def cifar_r18() -> ConfigDict:
    """solo-learn's settings for CIFAR-100, of the authors, on CIFAR-10. The queue is longer than the data set."""
    config = recipes.cifar_r18()
    config.method = dict(
        name="all4one",
        projector=(2048, 2048, 256),
        predictor=(4096, 256),
        temperature=0.2,
        centroid_temperature=0.1,
        neighbors=5,
        layers=3,
        heads=8,
        dropout=0.1,
        transformer_rate=0.1,
        neighbor_weight=0.5,
        centroid_weight=0.5,
        feature_weight=5.0,
        decay=0.99,
        queue_size=98_304,
    )
    config.augment = dict(view1=recipes.CIFAR_1, view2=recipes.CIFAR_2)
    config.optimizer = recipes.cifar_lars(config, 1.0, weight_decay=1e-5)
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "cifar_r18": cifar_r18}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("all4one", scale, SCALES)

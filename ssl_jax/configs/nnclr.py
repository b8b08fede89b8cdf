"""NNCLR: Dwibedi et al. 2021, arXiv:2104.14548."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.method = dict(name="nnclr", projector=(256, 256, 64), predictor=(256, 64), temperature=0.1, queue_size=8192)
    config.augment = dict(view1=recipes.tiny_view(), view2=recipes.tiny_view())
    return config


def cifar_r18() -> ConfigDict:
    """solo-learn's settings: 91.88 linear. The queue is longer than the data set."""
    config = recipes.cifar_r18()
    config.method = dict(
        name="nnclr", projector=(2048, 2048, 256), predictor=(4096, 256), temperature=0.2, queue_size=65_536
    )
    config.augment = dict(view1=recipes.CIFAR_1, view2=recipes.CIFAR_2)
    config.optimizer = recipes.cifar_lars(config, 0.4, weight_decay=1e-5)
    return config


def imagenet_r50() -> ConfigDict:
    """75.4 linear."""
    config = recipes.imagenet("resnet50", batch_size=4096, epochs=1000)
    config.method = dict(
        name="nnclr", projector=(2048, 2048, 256), predictor=(4096, 256), temperature=0.1, queue_size=98_304
    )
    config.augment = dict(view1=recipes.BYOL_1, view2=recipes.BYOL_2)
    config.optimizer = recipes.imagenet_lars(config, 0.3, weight_decay=1e-6)
    return config


def imagenet_r50_multicrop() -> ConfigDict:
    """75.6 linear. The paper has SwAV's six small crops. How they are paired is our choice (see the method)."""
    config = imagenet_r50()
    config.method.local_views = 6
    config.augment.local = dict(recipes.DINO_LOCAL, crop_area=(0.05, 0.14))
    return config


SCALES = {
    "tiny": tiny,
    "folder": recipes.folder(tiny),
    "cifar_r18": cifar_r18,
    "imagenet_r50": imagenet_r50,
    "imagenet_r50_multicrop": imagenet_r50_multicrop,
}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("nnclr", scale, SCALES)

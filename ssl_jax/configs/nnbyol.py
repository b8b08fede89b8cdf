"""NNBYOL: BYOL (arXiv:2006.07733) with the neighbors of NNCLR (Dwibedi et al. 2021, arXiv:2104.14548)."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.method = dict(name="nnbyol", projector=(256, 64), predictor=(256, 64), decay=0.99, queue_size=4096)
    config.augment = dict(view1=recipes.tiny_view(), view2=recipes.tiny_view())
    config.optimizer.lr = 8e-3
    return config


def cifar_r18() -> ConfigDict:
    """solo-learn's settings; no result is known. The queue is longer than the data set."""
    config = recipes.cifar_r18()
    config.method = dict(name="nnbyol", projector=(4096, 256), predictor=(4096, 256), decay=0.99, queue_size=65_536)
    config.augment = dict(view1=recipes.CIFAR_1, view2=recipes.CIFAR_2)
    config.optimizer = recipes.cifar_lars(config, 1.0, weight_decay=1e-5)
    return config


def imagenet_r50() -> ConfigDict:
    """BYOL's settings for 300 epochs, with solo-learn's queue; no result is known."""
    config = recipes.imagenet("resnet50", batch_size=4096, epochs=300, zero_init_residual=True)
    config.method = dict(name="nnbyol", projector=(4096, 256), predictor=(4096, 256), decay=0.99, queue_size=65_536)
    config.augment = dict(view1=recipes.BYOL_1, view2=recipes.BYOL_2)
    config.optimizer = recipes.imagenet_lars(config, 0.3, weight_decay=1e-6)
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "cifar_r18": cifar_r18, "imagenet_r50": imagenet_r50}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("nnbyol", scale, SCALES)

"""BYOL: Grill et al. 2020, arXiv:2006.07733."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.method = dict(name="byol", projector=(256, 64), predictor=(256, 64), decay=0.99)
    config.augment = dict(view1=recipes.tiny_view(), view2=recipes.tiny_view())
    config.optimizer.lr = 8e-3
    return config


def cifar_r18() -> ConfigDict:
    """solo-learn's settings: 92.58 linear."""
    config = recipes.cifar_r18()
    config.method = dict(name="byol", projector=(4096, 256), predictor=(4096, 256), decay=0.99)
    config.augment = dict(view1=recipes.CIFAR_1, view2=recipes.CIFAR_2)
    config.optimizer = recipes.cifar_lars(config, 1.0, weight_decay=1e-5)
    return config


def imagenet_r50() -> ConfigDict:
    """The settings of the authors' code for 1000 epochs: 74.3 linear."""
    # The last BatchNorm scale of each block starts at 0, as in the authors' networks.py.
    config = recipes.imagenet("resnet50", batch_size=4096, epochs=1000, zero_init_residual=True)
    config.method = dict(name="byol", projector=(4096, 256), predictor=(4096, 256), decay=0.996)
    config.augment = dict(view1=recipes.BYOL_1, view2=recipes.BYOL_2)
    config.optimizer = recipes.imagenet_lars(config, 0.2, weight_decay=1.5e-6)
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "cifar_r18": cifar_r18, "imagenet_r50": imagenet_r50}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("byol", scale, SCALES)

"""TiCo: Zhu et al. 2022, arXiv:2206.10698."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.method = dict(name="tico", projector=(256, 64), beta=0.9, rho=8.0, decay=0.99, symmetric=True)
    config.augment = dict(view1=recipes.tiny_view(), view2=recipes.tiny_view())
    return config


def cifar_r18() -> ConfigDict:
    """solo-learn's settings for BYOL; none are known for TiCo."""
    config = recipes.cifar_r18()
    config.method = dict(name="tico", projector=(4096, 256), beta=0.9, rho=8.0, decay=0.99)
    config.augment = dict(view1=recipes.CIFAR_1, view2=recipes.CIFAR_2)
    config.optimizer = recipes.cifar_lars(config, 1.0, weight_decay=1e-5)
    return config


def imagenet_r50() -> ConfigDict:
    """73.4 linear in the paper, after 1000 epochs. Learning rate and weight decay are lightly's, which are BYOL's."""
    config = recipes.imagenet("resnet50", batch_size=4096, epochs=1000)
    config.method = dict(name="tico", projector=(4096, 256), beta=0.9, rho=8.0, decay=0.99)
    config.augment = dict(view1=recipes.BYOL_1, view2=recipes.BYOL_2)
    config.optimizer = recipes.imagenet_lars(config, 0.2, weight_decay=1.5e-6)
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "cifar_r18": cifar_r18, "imagenet_r50": imagenet_r50}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("tico", scale, SCALES)

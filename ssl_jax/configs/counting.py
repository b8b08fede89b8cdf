"""Counting: Noroozi, Pirsiavash & Favaro 2017, arXiv:1708.06734."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.batch_size = 128  # each passes as five images with a quarter of its pixels
    config.method = dict(name="counting", width=64, margin=10.0)
    config.augment.view = recipes.tiny_view(crop_area=(0.5, 1.0))
    config.optimizer.lr = 0.1  # with a tenth of it or less, features become worse than those of the untrained network
    return config


def imagenet_r50() -> ConfigDict:
    """The paper's learning rates and crops; its network is an AlexNet. Batch and epochs are VISSL's."""
    config = recipes.imagenet("resnet50", batch_size=256, epochs=105)
    config.method = dict(name="counting", width=1000, margin=10.0)
    config.augment.view = dict(size=(224, 224), shorter_side=256, flip=0.0, grayscale=0.67)
    config.optimizer = {**recipes.pretext_sgd(config, 1e-4), **recipes.COUNTING_STEPS}
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "imagenet_r50": imagenet_r50}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("counting", scale, SCALES)

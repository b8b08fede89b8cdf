"""Exemplar-CNN: Dosovitskiy et al. 2014, arXiv:1406.6909."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.data.split = "train[:500]"  # 500 classes, each seen some 150 times in 300 steps
    config.method = dict(name="exemplar", rotate=20.0)
    config.augment.view = recipes.tiny_view(crop_area=(0.5, 1.0))
    return config


def cifar_r18() -> ConfigDict:
    """16,000 whole images. The paper has patches of STL-10, at most 16,000."""
    config = recipes.cifar_r18()
    config.data.split = "train[:16000]"
    config.epochs = 500
    config.method = dict(name="exemplar", rotate=20.0)
    view = dict(size=(32, 32), crop_area=(0.5, 1.0), flip=0.5)
    config.augment.view = {**view, **recipes.jitter(0.4, 0.4, 0.4, 0.1, 1.0)}
    config.optimizer = dict(name="sgd", lr=0.05, weight_decay=5e-4, warmup_steps=0, final_lr=0.0)
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "cifar_r18": cifar_r18}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("exemplar", scale, SCALES)

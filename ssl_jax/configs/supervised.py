"""Supervised pre-training: the baseline with labels."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.method = dict(name="supervised", label_smoothing=0.0, mixup=0.0, cutmix=0.0)
    config.augment.view = recipes.tiny_view()
    return config


def cifar_r18() -> ConfigDict:
    """He et al. 2015, arXiv:1512.03385, section 4.2, with a cosine: about 95. A random crop instead of a padded one."""
    config = recipes.cifar_r18()
    config.batch_size = 128
    config.epochs = 200
    config.method = dict(name="supervised")
    config.augment.view = dict(size=(32, 32), crop_area=(0.6, 1.0), flip=0.5)
    config.optimizer = dict(name="sgd", lr=0.1, weight_decay=5e-4, nesterov=True, warmup_steps=0, final_lr=0.0)
    return config


def imagenet_r50() -> ConfigDict:
    """VISSL's settings: 75.45."""
    config = recipes.imagenet("resnet50", batch_size=256, epochs=105)
    config.method = dict(name="supervised")
    view = dict(size=(224, 224), crop_area=(0.08, 1.0), flip=0.5)
    config.augment.view = {**view, **recipes.jitter(0.4, 0.4, 0.4, 0.4, 1.0)}
    config.optimizer = dict(
        name="sgd",
        lr=recipes.lr_for(config, 0.1),
        weight_decay=1e-4,
        exempt=("scale", "offset"),  # regularize_bn is False, regularize_bias True
        nesterov=True,
        warmup_steps=0,
        **recipes.in_steps(30, 60, 90, 100, of=105),
    )
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "cifar_r18": cifar_r18, "imagenet_r50": imagenet_r50}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("supervised", scale, SCALES)

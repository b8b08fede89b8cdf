"""Alignment and uniformity: Wang & Isola 2020, arXiv:2005.10242."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.method = dict(name="hypersphere", projector=(256, 64), uniformity=1.0, t=2.0, alpha=2.0)
    config.augment.view = recipes.tiny_view()
    return config


def cifar_r18() -> ConfigDict:
    """The authors' code for STL-10 at 64 pixels, with another network and data. They have no result for CIFAR."""
    config = recipes.cifar_r18()
    config.batch_size = 768
    config.epochs = 200
    config.method = dict(name="hypersphere", projector=(4096, 4096, 128), uniformity=1.0, t=2.0, alpha=2.0)
    config.augment.view = {
        **recipes.CIFAR_WEAK,
        **recipes.jitter(0.4, 0.4, 0.4, 0.4, 1.0),
        "blur": 0.0,
        "interpolation": "bilinear",
    }
    config.optimizer = dict(
        name="sgd",
        lr=recipes.lr_for(config, 0.12),
        weight_decay=1e-4,
        warmup_steps=0,
        **recipes.in_steps(155, 170, 185, of=200),
    )
    return config


def imagenet_r50() -> ConfigDict:
    """The authors' variant of MoCo v2: 67.7 linear.

    Their 3 * alignment + uniformity at a learning rate of 0.03 is alignment + uniformity / 3 at 0.09.
    """
    config = recipes.imagenet("resnet50", batch_size=256, epochs=200, batch_norm="grouped", batch_norm_groups=8)
    config.method = dict(
        name="hypersphere", projector=(2048, 128), uniformity=1 / 3, t=3.0, alpha=2.0, queue_size=65_536, decay=0.999
    )
    config.augment.view = recipes.MOCO_V2
    config.optimizer = dict(
        name="sgd", lr=recipes.lr_for(config, 0.09), weight_decay=1e-4 / 3, warmup_steps=0, final_lr=0.0
    )
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "cifar_r18": cifar_r18, "imagenet_r50": imagenet_r50}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("hypersphere", scale, SCALES)

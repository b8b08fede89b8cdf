"""MoCo v2+, solo-learn's (Turrisi da Costa et al. 2022, arXiv:2108.01775)."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.method = dict(
        name="moco_v2_plus", projector=(256, 64), temperature=0.1, decay=0.99, final_decay=0.99, queue_size=4096
    )
    config.augment.view = recipes.tiny_view()
    return config


def cifar_r18() -> ConfigDict:
    """solo-learn's settings: 92.94 linear."""
    config = recipes.cifar_r18()
    config.method = dict(
        name="moco_v2_plus", projector=(2048, 256), temperature=0.2, decay=0.99, final_decay=0.999, queue_size=32_768
    )
    config.augment.view = recipes.CIFAR_WEAK
    config.optimizer = dict(
        name="sgd",
        lr=recipes.lr_for(config, 0.3),
        weight_decay=1e-4,
        warmup_steps=recipes.CIFAR_WARMUP,
        final_lr=0.0,
    )
    return config


def imagenet_r50() -> ConfigDict:
    """solo-learn's script. Its table has one number for MoCo v2+ and ResNet-50: 62.61 linear after 100 epochs."""
    config = recipes.imagenet("resnet50", batch_size=128, epochs=400)
    config.method = dict(
        name="moco_v2_plus", projector=(2048, 256), temperature=0.2, decay=0.99, final_decay=0.999, queue_size=65_536
    )
    config.augment.view = {**recipes.MOCO_V2, "crop_area": (0.08, 1.0), "interpolation": "bicubic"}
    config.optimizer = dict(
        name="sgd",
        lr=recipes.lr_for(config, 0.3),
        weight_decay=3e-5,
        warmup_steps=recipes.imagenet_steps(10, 128),
        final_lr=0.0,
    )
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "cifar_r18": cifar_r18, "imagenet_r50": imagenet_r50}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("moco_v2_plus", scale, SCALES)

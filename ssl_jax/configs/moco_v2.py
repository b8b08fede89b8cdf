"""MoCo v2 (Chen et al. 2020, arXiv:2003.04297) and v1 (He et al. 2019, arXiv:1911.05722)."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.model.update(batch_norm="grouped", batch_norm_groups=8)
    config.method = dict(
        name="moco_v2", projector=(256, 64), temperature=0.1, decay=0.99, queue_size=4096, symmetric=True
    )
    config.augment.view = recipes.tiny_view()
    return config


def cifar_r18() -> ConfigDict:
    """The authors' demonstration, colab/moco_cifar10_demo.ipynb: 89.7 kNN, after 800 epochs with batches of 512.

    Their kNN compares the projector's outputs, with k = 200 and temperature 0.1.
    """
    config = recipes.cifar_r18()
    config.data.std = (0.2023, 0.1994, 0.2010)
    config.batch_size = 512
    config.epochs = 800
    config.model.update(batch_norm="grouped", batch_norm_groups=8)
    config.method = dict(name="moco_v2", projector=(128,), temperature=0.1, decay=0.99, queue_size=4096, symmetric=True)
    config.augment.view = {**recipes.CIFAR_WEAK, "blur": 0.0, "interpolation": "bilinear"}
    config.optimizer = dict(
        name="sgd", lr=recipes.lr_for(config, 0.03), weight_decay=5e-4, warmup_steps=0, final_lr=0.0
    )
    return config


def imagenet_r50() -> ConfigDict:
    """67.5 linear after 200 epochs; 71.1 after 800."""
    config = recipes.imagenet("resnet50", batch_size=256, epochs=200, batch_norm="grouped", batch_norm_groups=8)
    config.method = dict(name="moco_v2", projector=(2048, 128), temperature=0.2, decay=0.999, queue_size=65_536)
    config.augment.view = recipes.MOCO_V2
    config.optimizer = dict(
        name="sgd", lr=recipes.lr_for(config, 0.03), weight_decay=1e-4, warmup_steps=0, final_lr=0.0
    )
    return config


def imagenet_r50_v1() -> ConfigDict:
    """60.6 linear."""
    config = imagenet_r50()
    config.method.update(projector=(128,), temperature=0.07)
    config.augment.view = recipes.MOCO_V1
    config.optimizer.update(recipes.in_steps(120, 160, of=200))  # main_moco.py's default, without --cos
    return config


SCALES = {
    "tiny": tiny,
    "folder": recipes.folder(tiny),
    "cifar_r18": cifar_r18,
    "imagenet_r50": imagenet_r50,
    "imagenet_r50_v1": imagenet_r50_v1,
}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("moco_v2", scale, SCALES)

"""DenseCL: Wang et al. 2020, arXiv:2011.09157."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.model.update(batch_norm="grouped", batch_norm_groups=8)
    config.method = dict(
        name="densecl", projector=(256, 64), temperature=0.1, dense_weight=0.5, decay=0.99, queue_size=2048
    )
    config.augment.view = recipes.tiny_view()
    return config


def cifar_r18() -> ConfigDict:
    """The settings of MoCo's demonstration; no result is known. Maps have 4x4 positions."""
    config = recipes.cifar_r18()
    config.batch_size = 512
    config.epochs = 800
    config.model.update(batch_norm="grouped", batch_norm_groups=8)
    config.method = dict(
        name="densecl", projector=(512, 128), temperature=0.1, dense_weight=0.5, decay=0.99, queue_size=4096
    )
    config.augment.view = {**recipes.CIFAR_WEAK, "blur": 0.0, "interpolation": "bilinear"}
    config.optimizer = dict(
        name="sgd", lr=recipes.lr_for(config, 0.03), weight_decay=5e-4, warmup_steps=0, final_lr=0.0
    )
    return config


def imagenet_r50() -> ConfigDict:
    """The settings of the authors' code: 58.7 AP of detection on VOC. MoCo v2 has 57.0."""
    config = recipes.imagenet("resnet50", batch_size=256, epochs=200, batch_norm="grouped", batch_norm_groups=8)
    config.method = dict(
        name="densecl", projector=(2048, 128), temperature=0.2, dense_weight=0.5, decay=0.999, queue_size=65_536
    )
    config.augment.view = recipes.MOCO_V2
    config.optimizer = dict(
        name="sgd", lr=recipes.lr_for(config, 0.03), weight_decay=1e-4, warmup_steps=0, final_lr=0.0
    )
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "cifar_r18": cifar_r18, "imagenet_r50": imagenet_r50}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("densecl", scale, SCALES)

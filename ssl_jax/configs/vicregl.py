"""VICRegL: Bardes et al. 2022, arXiv:2210.01571."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    """Maps have 4 x 4 positions."""
    config = recipes.tiny()
    config.method = dict(
        name="vicregl",
        projector=(256, 256, 256),
        local_projector=(64, 64, 64),
        num_local=0,
        alpha=0.75,
        matches=(8, 4),
        invariance=25.0,
        variance=25.0,
        covariance=1.0,
    )
    config.augment = dict(global1=recipes.tiny_view(), global2=recipes.tiny_view())
    return config


def cifar_r18() -> ConfigDict:
    """solo-learn's settings for VICReg; solo-learn has no VICRegL. Maps have 4 x 4 positions."""
    config = recipes.cifar_r18()
    config.method = dict(
        name="vicregl",
        projector=(2048, 2048, 2048),
        local_projector=(512, 512, 512),
        num_local=0,
        alpha=0.9,
        matches=(8, 4),
        invariance=25.0,
        variance=25.0,
        covariance=1.0,
    )
    view = dict(recipes.CIFAR_1, crop_area=(0.2, 1.0), solarize=0.1)
    config.augment = dict(global1=view, global2=dict(view))
    config.optimizer = recipes.cifar_lars(config, 0.3, weight_decay=1e-4)
    return config


def imagenet_r50() -> ConfigDict:
    """The authors' command for 300 epochs: 71.2 linear (54.0 mIoU on Pascal VOC); 70.4 (55.9) with alpha=0.75."""
    config = recipes.imagenet("resnet50", batch_size=2048, epochs=300, zero_init_residual=True)
    config.method = dict(
        name="vicregl",
        projector=(8192, 8192, 8192),
        local_projector=(512, 512, 512),
        num_local=0,
        alpha=0.9,
        matches=(20, 4),
        invariance=25.0,
        variance=25.0,
        covariance=1.0,
    )
    config.augment = dict(global1=recipes.BYOL_1, global2=recipes.BYOL_2)
    config.optimizer = dict(
        name="lars",
        lr=recipes.lr_for(config, 0.2),
        weight_decay=1e-6,
        warmup_steps=recipes.imagenet_steps(10, 2048),
        final_lr=recipes.lr_for(config, 0.2 * 0.001),
    )
    return config


def imagenet_r50_multicrop() -> ConfigDict:
    """The authors' views for ConvNeXt, two global and six local; else their command for ResNet-50, 100 epochs.

    Their ConvNeXt-S has 75.9 linear, with AdamW.
    """
    config = imagenet_r50()
    config.batch_size = 512
    config.epochs = 100
    config.method.num_local = 6
    for i, colors in ((1, recipes.BYOL_1), (2, recipes.BYOL_2)):
        config.augment[f"global{i}"] = dict(colors, crop_area=(0.4, 1.0))
        config.augment[f"local{i}"] = dict(colors, size=(96, 96), crop_area=(0.08, 0.4))
    config.optimizer.lr = recipes.lr_for(config, 0.3)
    config.optimizer.final_lr = recipes.lr_for(config, 0.3 * 0.001)
    config.optimizer.warmup_steps = recipes.imagenet_steps(10, 512)
    return config


SCALES = {
    "tiny": tiny,
    "folder": recipes.folder(tiny),
    "cifar_r18": cifar_r18,
    "imagenet_r50": imagenet_r50,
    "imagenet_r50_multicrop": imagenet_r50_multicrop,
}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("vicregl", scale, SCALES)

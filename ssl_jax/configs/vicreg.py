"""VICReg: Bardes et al. 2021, arXiv:2105.04906."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.method = dict(name="vicreg", projector=(256, 256, 256), invariance=25.0, variance=25.0, covariance=1.0)
    config.augment = dict(view1=recipes.tiny_view(), view2=recipes.tiny_view())
    return config


def cifar_r18() -> ConfigDict:
    """solo-learn's settings: 92.07 linear.

    Its variance term is the sum over the views, not their mean. So its weight of 25 is 50 here.
    """
    config = recipes.cifar_r18()
    config.method = dict(name="vicreg", projector=(2048, 2048, 2048), invariance=25.0, variance=50.0, covariance=1.0)
    view = {**recipes.CIFAR_1, "crop_area": (0.2, 1.0), "solarize": 0.1}
    config.augment = dict(view1=view, view2=dict(view))
    config.optimizer = recipes.cifar_lars(config, 0.3, weight_decay=1e-4)
    return config


def imagenet_r50() -> ConfigDict:
    """73.2 linear. The augmentation is that of the authors' code; in the paper it is the same for both views."""
    config = recipes.imagenet("resnet50", batch_size=2048, epochs=1000, zero_init_residual=True)
    config.method = dict(name="vicreg", projector=(8192, 8192, 8192), invariance=25.0, variance=25.0, covariance=1.0)
    config.augment = dict(view1=recipes.BYOL_1, view2=recipes.BYOL_2)
    config.optimizer = dict(
        name="lars",
        lr=recipes.lr_for(config, 0.2),
        weight_decay=1e-6,
        warmup_steps=recipes.imagenet_steps(10, 2048),
        final_lr=recipes.lr_for(config, 0.2 * 0.001),
    )
    return config


def imagenet_r50_100_epochs() -> ConfigDict:
    """The authors' settings for a short run."""
    config = imagenet_r50()
    config.batch_size = 512
    config.epochs = 100
    config.optimizer.lr = recipes.lr_for(config, 0.3)
    config.optimizer.final_lr = recipes.lr_for(config, 0.3 * 0.001)
    config.optimizer.warmup_steps = recipes.imagenet_steps(10, 512)
    return config


SCALES = {
    "tiny": tiny,
    "folder": recipes.folder(tiny),
    "cifar_r18": cifar_r18,
    "imagenet_r50": imagenet_r50,
    "imagenet_r50_100_epochs": imagenet_r50_100_epochs,
}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("vicreg", scale, SCALES)

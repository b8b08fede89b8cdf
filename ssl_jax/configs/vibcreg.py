"""VIbCReg: Lee & Aune 2021, arXiv:2109.00783."""

from ml_collections import ConfigDict

from ssl_jax import recipes

WEIGHTS = dict(invariance=25.0, variance=25.0, covariance=200.0)


def tiny() -> ConfigDict:
    config = recipes.tiny()
    # Groups of 16 dimensions; the authors' have 64, solo-learn's 32.
    config.method = dict(name="vibcreg", projector=(256, 64), activation="relu", norm_groups=4, **WEIGHTS)
    config.augment = dict(view1=recipes.tiny_view(), view2=recipes.tiny_view())
    return config


def cifar_r18() -> ConfigDict:
    """solo-learn's settings: 91.18 linear."""
    config = recipes.cifar_r18()
    config.method = dict(name="vibcreg", projector=(2048, 2048, 2048), activation="gelu", norm_groups=64, **WEIGHTS)
    view = {**recipes.CIFAR_1, "crop_area": (0.2, 1.0), "solarize": 0.1}
    config.augment = dict(view1=view, view2=dict(view))
    config.optimizer = recipes.cifar_lars(config, 0.3, weight_decay=1e-4)
    return config


def imagenet_r50() -> ConfigDict:
    """The authors' heads and weights (they train on time series), else VICReg's settings; no result is known."""
    config = recipes.imagenet("resnet50", batch_size=2048, epochs=1000, zero_init_residual=True)
    config.method = dict(name="vibcreg", projector=(4096, 4096, 4096), activation="relu", norm_groups=64, **WEIGHTS)
    config.augment = dict(view1=recipes.BYOL_1, view2=recipes.BYOL_2)
    config.optimizer = dict(
        name="lars",
        lr=recipes.lr_for(config, 0.2),
        weight_decay=1e-6,
        warmup_steps=recipes.imagenet_steps(10, 2048),
        final_lr=recipes.lr_for(config, 0.2 * 0.001),
    )
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "cifar_r18": cifar_r18, "imagenet_r50": imagenet_r50}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("vibcreg", scale, SCALES)

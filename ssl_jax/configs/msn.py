"""MSN (Assran et al. 2022, arXiv:2204.07141) and PMSN (arXiv:2210.07277)."""

from ml_collections import ConfigDict

from ssl_jax import recipes

POWER = 0.25  # PMSN's


EXEMPT = (*recipes.VECTORS, "prototypes")  # the authors' optimizer does not decay the prototypes, either


def tiny() -> ConfigDict:
    config = recipes.tiny_vit()
    config.method = dict(
        name="msn",
        focal_views=2,
        mask_ratio=0.15,
        projector=(256, 256, 64),
        prototypes=128,
        power=0.0,
        decay=0.99,
    )
    view = recipes.tiny_view(crop_area=(0.3, 1.0))
    config.augment = dict(target=view, anchor=view, focal=recipes.tiny_local(size=(14, 14)))
    config.mask = dict(kind="random", ratio=(0.15, 0.15))
    config.optimizer.update(lr=1e-3, clip_norm=3.0, weight_decay=0.04, final_weight_decay=0.4, exempt=EXEMPT)
    return config


def tiny_pmsn() -> ConfigDict:
    config = tiny()
    config.method.power = POWER
    return config


def imagenet_vits16() -> ConfigDict:
    """76.9 linear; 67.2 with 1 % of the labels."""
    config = recipes.imagenet("vit_small_patch16_224", batch_size=1024, epochs=800)
    config.method = dict(name="msn", focal_views=10, mask_ratio=0.15, power=0.0)
    view = {**recipes.MOCO_V2, "crop_area": (0.3, 1.0)}
    config.augment = dict(target=view, anchor=view, focal={**view, "size": (96, 96), "crop_area": (0.05, 0.3)})
    config.mask = dict(kind="random", ratio=(0.15, 0.15))
    config.optimizer = dict(
        name="adamw",
        lr=recipes.lr_for(config, 2.5e-4),  # 1e-3 at a batch of 1024
        weight_decay=0.04,
        final_weight_decay=0.4,
        exempt=EXEMPT,
        first_lr=2e-4,
        warmup_steps=recipes.imagenet_steps(15, 1024),
        final_lr=1e-6,
        schedule_stretch=1.25,
        clip_norm=3.0,
    )
    return config


def imagenet_vits16_pmsn() -> ConfigDict:
    """MSN's settings. The paper's results are for long-tailed data, such as iNaturalist 2018."""
    config = imagenet_vits16()
    config.method.power = POWER
    return config


SCALES = {
    "tiny": tiny,
    "folder": recipes.folder(tiny),
    "tiny_pmsn": tiny_pmsn,
    "imagenet_vits16": imagenet_vits16,
    "imagenet_vits16_pmsn": imagenet_vits16_pmsn,
}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("msn", scale, SCALES)

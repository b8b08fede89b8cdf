"""MaskFeat: Wei et al. 2021, arXiv:2112.09133."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny_vit()
    config.model.pool = "norm_mean"
    config.method = dict(name="maskfeat", cell=7, bins=9)
    config.augment.view = recipes.tiny_view(crop_area=(0.5, 1.0), brightness=0.0, contrast=0.0)
    config.mask = dict(kind="block", ratio=(0.4, 0.4), min_patches=1)
    return config


def imagenet_vitb16() -> ConfigDict:
    """84.0 fine-tuned, after 1600 epochs. After 300 epochs mmpretrain has 83.4."""
    config = recipes.imagenet("vit_base_patch16_224", batch_size=2048, epochs=1600, pool="norm_mean")
    config.method = dict(name="maskfeat", cell=8, bins=9)
    config.augment.view = dict(size=(224, 224), crop_area=(0.5, 1.0), flip=0.5, interpolation="bicubic")
    config.mask = dict(kind="block", ratio=(0.4, 0.4), min_patches=15)
    config.optimizer = dict(
        name="adamw",
        lr=recipes.lr_for(config, 2e-4),
        weight_decay=0.05,
        clip_norm=0.02,
        first_lr=recipes.lr_for(config, 1e-6),
        warmup_steps=recipes.imagenet_steps(30, 2048),
        final_lr=recipes.lr_for(config, 1e-6),  # scaled as the peak, by batch_size / 256
    )
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "imagenet_vitb16": imagenet_vitb16}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("maskfeat", scale, SCALES)

"""SimMIM: Xie et al. 2021, arXiv:2111.09886."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny_vit()
    config.model.pool = "norm_mean"
    config.method = dict(name="simmim")
    config.augment.view = recipes.tiny_view(crop_area=(0.5, 1.0), brightness=0.0, contrast=0.0)
    config.mask = dict(kind="random", ratio=(0.6, 0.6))
    return config


def imagenet_vitb16() -> ConfigDict:
    """83.8 fine-tuned."""
    model = dict(positions="relative", layer_scale=0.1, drop_path=0.1, pool="norm_mean")
    config = recipes.imagenet("vit_base_patch16_224", batch_size=2048, epochs=800, **model)
    config.method = dict(name="simmim")
    config.augment.view = dict(size=(224, 224), crop_area=(0.67, 1.0), flip=0.5)
    config.mask = dict(kind="random", ratio=(30 / 49, 30 / 49), unit=2)  # 0.6 of 7 x 7 squares of 32 pixels, rounded up
    config.optimizer = dict(
        name="adamw",
        lr=recipes.lr_for(config, 0.5e-4),
        weight_decay=0.05,
        exempt=(*recipes.VECTORS, "cls_token", "pos_embed"),
        clip_norm=5.0,
        first_lr=recipes.lr_for(config, 2.5e-7),
        warmup_steps=recipes.imagenet_steps(10, 2048),
        **recipes.in_steps(700, of=800),
    )
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "imagenet_vitb16": imagenet_vitb16}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("simmim", scale, SCALES)

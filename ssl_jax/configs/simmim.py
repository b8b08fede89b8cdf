"""SimMIM: Xie et al. 2021, arXiv:2111.09886."""

import math
from typing import Any

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny_vit()
    config.model.pool = "norm_mean"
    config.method = dict(name="simmim")
    config.augment.view = recipes.tiny_view(crop_area=(0.5, 1.0), brightness=0.0, contrast=0.0)
    config.mask = dict(kind="random", ratio=(0.6, 0.6))
    return config


def _imagenet(name: str, pixels: int, *, exempt: tuple[str, ...], **model: Any) -> ConfigDict:
    config = recipes.imagenet(name, batch_size=2048, epochs=800, **model)
    config.data.image_size = (pixels, pixels)
    config.method = dict(name="simmim")
    config.augment.view = dict(size=(pixels, pixels), crop_area=(0.67, 1.0), flip=0.5)
    squares = (pixels // 32) ** 2
    hidden = math.ceil(0.6 * squares) / squares
    config.mask = dict(kind="random", ratio=(hidden, hidden))
    config.optimizer = dict(
        name="adamw",
        lr=recipes.lr_for(config, 0.5e-4),
        weight_decay=0.05,
        exempt=(*recipes.VECTORS, *exempt),
        clip_norm=5.0,
        first_lr=recipes.lr_for(config, 2.5e-7),
        warmup_steps=recipes.imagenet_steps(10, 2048),
        **recipes.in_steps(700, of=800),
    )
    return config


def imagenet_vitb16() -> ConfigDict:
    """83.8 fine-tuned."""
    model = dict(positions="relative", layer_scale=0.1, drop_path=0.1, pool="norm_mean")
    config = _imagenet("vit_base_patch16_224", 224, exempt=("cls_token", "pos_embed"), **model)
    config.mask.unit = 2  # squares of 32 pixels
    return config


def imagenet_swinb() -> ConfigDict:
    """84.0 fine-tuned at 224 pixels. A square of 32 pixels is one place of a Swin's last map."""
    model = dict(window=6, image_size=192)
    return _imagenet("swin_base_patch4_window7_224", 192, exempt=("mask_token",), **model)


SCALES = {
    "tiny": tiny,
    "folder": recipes.folder(tiny),
    "imagenet_vitb16": imagenet_vitb16,
    "imagenet_swinb": imagenet_swinb,
}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("simmim", scale, SCALES)

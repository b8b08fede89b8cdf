"""MoCo v3: Chen, Xie & He 2021, arXiv:2104.02057. ImageNet's settings are those of the authors' CONFIG.md."""

from typing import Any

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.method = dict(name="moco_v3", projector=(256, 64), predictor=(256, 64), temperature=0.2, decay=0.99)
    config.augment = dict(view1=recipes.tiny_view(), view2=recipes.tiny_view())
    return config


def cifar_r18() -> ConfigDict:
    """solo-learn's settings: 93.10 linear."""
    config = recipes.cifar_r18()
    config.method = dict(name="moco_v3", projector=(4096, 256), predictor=(4096, 256), temperature=0.2, decay=0.99)
    config.augment = dict(view1=recipes.CIFAR_1, view2=recipes.CIFAR_2)
    config.optimizer = recipes.cifar_lars(config, 0.3, weight_decay=1e-6)
    return config


def imagenet_views(smallest_crop: float) -> dict[str, Any]:
    """BYOL's two views, with bilinear crops."""
    changes = dict(crop_area=(smallest_crop, 1.0), interpolation="bilinear")
    return dict(view1={**recipes.BYOL_1, **changes}, view2={**recipes.BYOL_2, **changes})


def imagenet_r50() -> ConfigDict:
    """72.8 linear after 300 epochs. After 100: 68.9, lr 0.6. After 1000: 74.6, weight decay 1.5e-6, decay 0.996."""
    config = recipes.imagenet("resnet50", batch_size=4096, epochs=300, zero_init_residual=True)
    config.method = dict(name="moco_v3", projector=(4096, 256), predictor=(4096, 256), temperature=1.0, decay=0.99)
    config.augment = imagenet_views(0.2)
    config.optimizer = recipes.imagenet_lars(config, 0.3, weight_decay=1e-6)
    return config


def imagenet_vits16() -> ConfigDict:
    """73.2 linear, 81.4 fine-tuned. This ViT-S has 12 heads; timm's has 6."""
    config = recipes.imagenet("vit_small_patch16_224", batch_size=4096, epochs=300, heads=12, positions="sincos")
    config.method = dict(
        name="moco_v3",
        projector=(4096, 4096, 256),
        predictor=(4096, 256),
        predictor_norm=True,
        temperature=0.2,
        decay=0.99,
        frozen_patches=True,
    )
    config.augment = imagenet_views(0.08)
    config.optimizer = dict(
        name="adamw",
        lr=recipes.lr_for(config, 1.5e-4),
        weight_decay=0.1,
        exempt=(),  # biases and normalizations are decayed, too
        warmup_steps=recipes.imagenet_steps(40, 4096),
        final_lr=0.0,
    )
    return config


SCALES = {
    "tiny": tiny,
    "folder": recipes.folder(tiny),
    "cifar_r18": cifar_r18,
    "imagenet_r50": imagenet_r50,
    "imagenet_vits16": imagenet_vits16,
}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("moco_v3", scale, SCALES)

"""DINOv2: Oquab et al. 2023, arXiv:2304.07193. Numbers of its code's configs."""

import math

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny_vit()
    config.method = dict(
        name="dinov2",
        local_views=2,
        prototypes=256,
        hidden=(256,),
        bottleneck=64,
        centering="sinkhorn",
        teacher_temperature=0.04,
        warmup_temperature_epochs=0,
        decay=0.95,
        freeze_epochs=0,
    )
    config.augment = dict(
        global1=recipes.tiny_view(), global2=recipes.tiny_view(), local=recipes.tiny_local(size=(14, 14))
    )
    config.mask = dict(kind="block", images=0.5, ratio=(0.1, 0.5), min_patches=1)
    config.optimizer.update(lr=2e-3, clip_norm=3.0, weight_decay=0.04, final_weight_decay=0.4)
    return config


# Its epochs have 1250 steps whatever the data set is; the method's are those of the data set.
STEPS = 1250


def _imagenet(batch_size: int, epochs: int, warmup: int, lr: float, patch_size: int, local: int, drop_path: float):
    """ViT-L, which the base model is made into."""
    config = recipes.imagenet(
        "vit_base_patch16_224",
        batch_size=batch_size,
        epochs=0,
        dim=1024,
        depth=24,
        heads=16,
        patch_size=patch_size,
        layer_scale=1e-5,
        drop_path=drop_path,
    )
    config.steps = epochs * STEPS
    steps_per_epoch = recipes.imagenet_steps(1, batch_size)
    config.method = dict(
        name="dinov2",
        local_views=8,
        warmup_temperature_epochs=round(30 * STEPS / steps_per_epoch),
        freeze_epochs=round(STEPS / steps_per_epoch),
    )
    config.augment = dict(
        global1={**recipes.DINO_1, "crop_area": (0.32, 1.0)},
        global2={**recipes.DINO_2, "crop_area": (0.32, 1.0)},
        local={**recipes.DINO_LOCAL, "size": (local, local), "crop_area": (0.05, 0.32)},
    )
    config.mask = dict(kind="block", images=0.5, ratio=(0.1, 0.5), min_patches=4)
    config.optimizer = dict(
        name="adamw",
        lr=lr * math.sqrt(batch_size / 1024),  # of this batch; it does not follow --config.batch_size
        weight_decay=0.04,
        warmup_steps=warmup * STEPS,
        final_lr=1e-6,
        clip_norm=3.0,  # the authors' is of each network by itself
        patch_embed_lr_scale=0.2,
    )
    return config


def imagenet_vitl16_short() -> ConfigDict:
    """The authors' short run, a day on 32 A100: 81.6 kNN, 82.9 linear."""
    config = _imagenet(2048, epochs=100, warmup=10, lr=4e-3, patch_size=16, local=96, drop_path=0.3)
    config.method.decay = 0.992
    config.optimizer.update(layer_decay=0.9, final_weight_decay=0.4)
    return config


def imagenet_vitl14() -> ConfigDict:
    """The authors' long run for ViT-L, but for its SwiGLU layers and its data, ImageNet-22k: 500 epochs on 96 A100."""
    config = _imagenet(3072, epochs=500, warmup=80, lr=2e-4, patch_size=14, local=98, drop_path=0.4)
    config.method.update(
        centering="sinkhorn",
        separate_heads=True,
        prototypes=131_072,
        patch_prototypes=131_072,
        bottleneck=384,
        patch_bottleneck=256,
        decay=0.994,
    )
    config.optimizer.final_weight_decay = 0.2
    return config


SCALES = {"tiny": tiny, "imagenet_vitl16_short": imagenet_vitl16_short, "imagenet_vitl14": imagenet_vitl14}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("dinov2", scale, SCALES)

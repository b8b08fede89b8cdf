"""DINOv2: Oquab et al. 2023, arXiv:2304.07193. The settings are those of the configs in the authors' code."""

import math
from typing import Any

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
    config.optimizer.update(lr=2e-3, clip_networks=3.0, weight_decay=0.04, final_weight_decay=0.4)
    return config


def continued() -> ConfigDict:
    """Given weights trained further, see recipes.continued.

    The authors' learning rate of the long runs is 2e-4 for 1024 images, and so 1e-4 for 256 by their rule of square
    roots; a quarter of it, as in DINOv3's high-resolution adaptation, is 2.5e-5. From there are the teacher's decay of
    0.999, too, and the rate of the patch embedding. The heads are new: their temperature stays at 0.04, and their
    prototypes move from the first step. 4096 prototypes, and the layer decay of the short run, are our choice.
    """
    config = recipes.continued(2.5e-5, layer_decay=0.9, clip_networks=3.0, patch_embed_lr_scale=0.2)
    config.method = dict(
        name="dinov2",
        local_views=8,
        prototypes=4096,
        centering="sinkhorn",
        teacher_temperature=0.04,
        warmup_temperature_epochs=0,
        decay=0.999,
        freeze_epochs=0,
    )
    config.augment = dict(
        global1={**recipes.DINO_1, "crop_area": (0.32, 1.0)},
        global2={**recipes.DINO_2, "crop_area": (0.32, 1.0)},
        local={**recipes.DINO_LOCAL, **recipes.CONTINUED_LOCAL, "crop_area": (0.05, 0.32)},
    )
    config.mask = dict(kind="block", images=0.5, ratio=(0.1, 0.5), min_patches=4)
    return config


# The epochs of the authors' code have 1250 steps for any data set. The epochs of the method's keys are those of the
# data set.
STEPS = 1250


def _imagenet(model: dict[str, Any], batch_size: int, epochs: int, warmup: int, lr: float, local: int):
    # drop_path_uniform as in the authors' code. A rate that grows from 0 at the first block would regularize half as
    # much.
    options = dict(image_size=224, layer_scale=1e-5, drop_path_uniform=True)
    config = recipes.imagenet(batch_size=batch_size, epochs=0, **options, **model)
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
        lr=lr * math.sqrt(batch_size / 1024),  # for this batch size; it does not follow --config.batch_size
        weight_decay=0.04,
        warmup_steps=warmup * STEPS,
        final_lr=1e-6,
        clip_networks=3.0,
        patch_embed_lr_scale=0.2,
    )
    return config


def imagenet_vitl16_short() -> ConfigDict:
    """The authors' short run, a day on 32 A100: 81.6 kNN, 82.9 linear.

    Each branch is computed for 11 of 16 crops; in their code, for 89 of a device's 128. So it runs on up to 256
    devices.
    """
    model = dict(model="vit_large_patch16_224", drop_path=0.3, drop_path_group=16)
    config = _imagenet(model, 2048, epochs=100, warmup=10, lr=4e-3, local=96)
    config.method.update(decay=0.992, most_masked=98)  # half of 14 x 14 patches
    config.method.koleo_images = 64  # batch_size_per_gpu
    config.optimizer.update(layer_decay=0.9, final_weight_decay=0.4)
    return config


# Each branch is computed for 14 of 24 crops, a device's crops in the authors' run of ViT-g. In their run of ViT-L it is
# computed for 38 of 64.
LONG_DROP: dict[str, Any] = dict(drop_path=0.4, drop_path_group=24)


def _imagenet_long(
    model: dict[str, Any],
    drop: dict[str, Any] = LONG_DROP,
    *,
    batch_size: int = 3072,
    epochs: int = 500,
    warmup: int = 80,
    lr: float = 2e-4,
) -> ConfigDict:
    config = _imagenet({**model, **drop}, batch_size, epochs=epochs, warmup=warmup, lr=lr, local=98)
    config.method.update(
        centering="sinkhorn",
        separate_heads=True,
        prototypes=131_072,
        patch_prototypes=131_072,
        bottleneck=384,
        patch_bottleneck=256,
        decay=0.994,
        most_masked=128,  # half of 16 x 16 patches
    )
    config.optimizer.final_weight_decay = 0.2
    return config


def imagenet_vitl14() -> ConfigDict:
    """The authors' long run for ViT-L: 500 epochs on 96 A100. Their data is ImageNet-22k."""
    hidden = 2 * 2736  # twice; 2736 is two thirds of 4 * 1024, rounded up to a multiple of 8
    swiglu = dict(mlp="swiglu", mlp_ratio=hidden / 1024)
    config = _imagenet_long(dict(model="vit_large_patch16_224", patch_size=14, **swiglu))
    config.method.koleo_images = 32  # batch_size_per_gpu
    return config


def imagenet_vitg14() -> ConfigDict:
    """The authors' settings for ViT-g. With their data, LVD-142M: 83.5 kNN, 86.5 linear."""
    config = _imagenet_long(dict(model="vit_giant_patch14_dinov2"))
    config.method.koleo_images = 12  # batch_size_per_gpu
    config.shard_state = True
    config.model.update(remat="block", scan=True)
    return config


def imagenet_vitb14_franca() -> ConfigDict:
    """Franca's ViT-B, arXiv:2507.14137, as in the config of its authors' code. Their data is ImageNet-21k."""
    hidden = 2 * 2048  # 2048 is two thirds of 4 * 768
    model = dict(model="vit_base_patch16_224", patch_size=14, mlp="swiglu", mlp_ratio=hidden / 768)
    # Each branch of a block is computed for 14 of 16 crops; in their run, for 57 of 64.
    drop = dict(drop_path=0.1, drop_path_group=16)
    config = _imagenet_long(model, drop, batch_size=2048, epochs=800, warmup=128, lr=7.01e-4)
    config.method.update(koleo_images=32, nested=(2, 4, 8, 16))
    config.method.most_masked = 166  # 0.65 of 16 x 16 patches
    config.mask = dict(kind="inverse", images=0.5, ratio=(0.1, 0.65))
    return config


SCALES = {
    "tiny": tiny,
    "folder": recipes.folder(tiny),
    "continue": continued,
    "imagenet_vitl16_short": imagenet_vitl16_short,
    "imagenet_vitl14": imagenet_vitl14,
    "imagenet_vitg14": imagenet_vitg14,
    "imagenet_vitb14_franca": imagenet_vitb14_franca,
}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("dinov2", scale, SCALES)

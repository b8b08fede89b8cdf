"""DINOv3: Simeoni et al. 2025, arXiv:2508.10104. The settings are those of the configs in the authors' code."""

import math
from typing import Any

from ml_collections import ConfigDict

from ssl_jax import recipes

WARMUP = 10_000  # steps, of heads that are new in the second phase


def tiny() -> ConfigDict:
    """Gram anchoring in the second half, with a Gram teacher from a quarter of the run on, renewed twice."""
    config = recipes.tiny_vit()
    config.model.update(positions="rope", rope_jitter=2.0, registers=2, qkv_bias=False)
    config.method = dict(
        name="dinov3",
        local_views=2,
        prototypes=256,
        hidden=(256,),
        bottleneck=64,
        patch_prototypes=256,
        patch_hidden=(256,),
        patch_bottleneck=64,
        teacher_temperature=0.04,
        warmup_temperature_epochs=0,
        decay=0.95,
        freeze_epochs=0,
        gram_weight=2.0,
        gram_start=500,
        gram_warmup=50,
        gram_copies=(250, 600, 700),
    )
    config.augment = dict(
        global1=recipes.tiny_view(), global2=recipes.tiny_view(), local=recipes.tiny_local(size=(14, 14))
    )
    config.mask = dict(kind="block", images=0.5, ratio=(0.1, 0.5), min_patches=1)
    config.optimizer.update(lr=2e-3, final_lr=0.0, schedule="multistep", clip_networks=3.0, weight_decay=0.04, b2=0.99)
    return config


def continued() -> ConfigDict:
    """Given weights trained further, their patches anchored to what they were; see recipes.continued.

    Learning rate, teacher's decay, beta2 and clipping are those of the authors' high-resolution adaptation, for a batch
    of 256: 4 x 1.25e-5 x sqrt(256 / 1024). Its Gram weight is 1.5; 2 is that of the phase before. The heads are new:
    their temperature stays at 0.04, and their prototypes move from the first step. 4096 prototypes, and the layer decay
    of the short runs, are our choice.
    """
    config = recipes.continued(2.5e-5, layer_decay=0.9, clip_networks=30.0, patch_embed_lr_scale=0.2, b2=0.99)
    config.model = dict(name="vit_small_patch16_dinov3", rope_jitter=2.0)
    config.method = dict(
        name="dinov3",
        prototypes=4096,
        hidden=(2048, 2048),
        bottleneck=256,
        patch_prototypes=4096,
        patch_hidden=(2048, 2048),
        patch_bottleneck=256,
        teacher_temperature=0.04,
        warmup_temperature_epochs=0,
        decay=0.999,
        freeze_epochs=0,
        gram_weight=2.0,
    )
    config.augment = views(224, 112, flip=0.5)
    config.mask = dict(kind="block", images=0.5, ratio=(0.1, 0.5), min_patches=4)
    return config


def views(large: int, small: int, *, flip: float) -> dict[str, Any]:
    """DINOv2's crops of these sides."""
    area: dict[str, Any] = dict(size=(large, large), crop_area=(0.32, 1.0), flip=flip)
    return dict(
        global1={**recipes.DINO_1, **area},
        global2={**recipes.DINO_2, **area},
        local={**recipes.DINO_LOCAL, "size": (small, small), "crop_area": (0.05, 0.32), "flip": flip},
    )


def imagenet(model: dict[str, Any], *, batch_size: int, steps: int) -> ConfigDict:
    config = recipes.imagenet(batch_size=batch_size, epochs=0, **model)
    config.steps = steps
    config.mask = dict(kind="block", images=0.5, ratio=(0.1, 0.5), min_patches=4)
    return config


def epochs(steps: int, batch_size: int) -> int:
    """The authors' epochs have a fixed number of steps for any data set. The method's are those of the data set."""
    return round(steps / recipes.imagenet_steps(1, batch_size))


def imagenet_vitl16() -> ConfigDict:
    """The authors' run for ViT-L on ImageNet, without registers and Gram anchoring: 82.2 kNN, 83.3 linear."""
    batch_size, epoch = 2048, 1250
    model = dict(
        model="vit_large_patch16_224",
        positions="rope",
        layer_scale=1e-5,
        drop_path=0.3,
        drop_path_group=16,
        drop_path_uniform=True,
    )
    config = imagenet(model, batch_size=batch_size, steps=100 * epoch)
    config.model.scan = True  # compiles one block in place of 24
    config.method = dict(
        name="dinov3",
        local_norm=False,
        prototypes=65_536,
        hidden=(2048, 2048),
        bottleneck=256,
        patch_prototypes=65_536,
        patch_hidden=(2048, 2048),
        patch_bottleneck=256,
        most_masked=98,  # half of 14 x 14 patches
        koleo_images=64,  # batch_size_per_gpu
        warmup_temperature_epochs=epochs(30 * epoch, batch_size),
        decay=0.992,
        final_decay=1.0,
        freeze_epochs=epochs(epoch, batch_size),
    )
    config.augment = views(224, 96, flip=0.5)
    config.optimizer = dict(
        name="adamw",
        lr=4 * 0.001 * math.sqrt(batch_size / 1024),  # for this batch size; it does not follow --config.batch_size
        weight_decay=0.04,
        final_weight_decay=0.4,
        warmup_steps=10 * epoch,
        final_lr=1e-6,
        clip_networks=3.0,
        patch_embed_lr_scale=0.2,
        layer_decay=0.9,
    )
    return config


def _vit7b16(*, steps: int, lr: float, decay: float, batch_size: int = 4096) -> ConfigDict:
    epoch = 1000
    # 9 of 16 crops keep a branch; in their code, 19 of a device's 32.
    model = dict(
        model="vit_7b_patch16_dinov3", rope_jitter=2.0, drop_path=0.4, drop_path_group=16, drop_path_uniform=True
    )
    config = imagenet(model, batch_size=batch_size, steps=steps)
    config.model.update(remat="block", scan=True)
    config.shard_state = True
    config.method = dict(
        name="dinov3",
        most_masked=128,  # half of 16 x 16 patches
        koleo_images=16,  # batch_size_per_gpu
        warmup_temperature_epochs=epochs(100 * epoch, batch_size),
        decay=decay,
        freeze_epochs=epochs(5 * epoch, batch_size),
    )
    config.augment = views(256, 112, flip=0.0)
    config.optimizer = dict(
        name="adamw",
        lr=4 * lr * math.sqrt(batch_size / 1024),  # for this batch size; it does not follow --config.batch_size
        schedule="multistep",  # without milestones: constant after the warm-up
        weight_decay=0.04,
        warmup_steps=100 * epoch,
        clip_networks=30.0,
        patch_embed_lr_scale=0.2,
        layer_decay=0.98,
        b2=0.99,
    )
    return config


def imagenet_vit7b16() -> ConfigDict:
    """The authors' pre-training of ViT-7B, for a million steps. Their data is LVD-1689M."""
    return _vit7b16(steps=1_000_000, lr=5e-5, decay=0.994)


def imagenet_vit7b16_gram() -> ConfigDict:
    """The second phase: 200,000 steps with Gram anchoring, of weights that are given (config.begin).

    The authors' run goes on with its heads and optimizer. Here these are new, and warm up for 10,000 steps, as many as
    the learning rate of their high-resolution adaptation does. Their first Gram teacher is the teacher of an earlier
    step; here it is the given weights.
    """
    config = _vit7b16(steps=200_000, lr=3e-5, decay=0.999)
    config.begin = None
    config.method.update(gram_weight=2.0, gram_warmup=1000, gram_copies=(10_000, 20_000, 30_000), gram_scale=2.0)
    config.method.warmup_temperature_epochs = epochs(WARMUP, config.batch_size)
    config.optimizer.warmup_steps = WARMUP
    config.augment = views(512, 112, flip=0.0)
    return config


def imagenet_vit7b16_highres() -> ConfigDict:
    """The third phase, high-resolution adaptation: 30,000 steps of weights that are given (config.begin).

    Each step draws the sides of its crops (config.mix). The large crops are as large as the Gram teacher sees them:
    1.5 times the sides of student and teacher, which are 512 and 768. The Gram teacher is the given weights; in the
    authors' code it is the teacher at the end of the second phase. As in imagenet_vit7b16_gram, heads and optimizer are
    new.
    """
    config = _vit7b16(steps=30_000, lr=1.25e-5, decay=0.999, batch_size=2048)
    config.begin = None
    config.method.update(gram_weight=1.5, gram_scale=1.5, most_masked=1152)  # half of 48 x 48 patches
    config.method.warmup_temperature_epochs = epochs(WARMUP, config.batch_size)
    config.optimizer.warmup_steps = WARMUP
    config.augment = views(1152, 112, flip=0.0)
    config.mix = dict(
        shares=(0.3, 0.3, 0.3, 0.05, 0.05),
        global1=(768, 1152, 1152, 1152, 1152),
        global2=(768, 1152, 1152, 1152, 1152),
        local=(112, 112, 168, 224, 336),
    )
    return config


SCALES = {
    "tiny": tiny,
    "folder": recipes.folder(tiny),
    "continue": continued,
    "imagenet_vitl16": imagenet_vitl16,
    "imagenet_vit7b16": imagenet_vit7b16,
    "imagenet_vit7b16_gram": imagenet_vit7b16_gram,
    "imagenet_vit7b16_highres": imagenet_vit7b16_highres,
}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("dinov3", scale, SCALES)

"""DINOv3's distillation: Simeoni et al. 2025, arXiv:2508.10104. Settings are those of configs in the authors' code."""

import math

from ml_collections import ConfigDict

from ssl_jax import recipes
from ssl_jax.configs.dinov3 import epochs, imagenet, views

EPOCH = 1250  # steps of an epoch of the authors


def tiny() -> ConfigDict:
    """A ViT of two thirds of the teacher's width and a ConvNeXt learn together.

    `method.teacher` is to be given, the directory of a run of dinov3:tiny.
    """
    config = recipes.tiny_vit()
    config.model.update(dim=64, depth=2, heads=2, positions="rope", registers=2, qkv_bias=False)
    config.method = dict(
        name="dinov3_distillation",
        teacher="",
        students=("convnext_atto(patch_size=2, base_width=16, stages=(1, 1))",),
        local_views=2,
        hidden=(256,),
        bottleneck=64,
        patch_hidden=(256,),
        patch_bottleneck=64,
        teacher_temperature=0.04,
        decay=0.95,
    )
    config.augment = dict(
        global1=recipes.tiny_view(), global2=recipes.tiny_view(), local=recipes.tiny_local(size=(14, 14))
    )
    config.mask = dict(kind="block", images=0.5, ratio=(0.1, 0.5), min_patches=1)
    config.optimizer.update(lr=2e-3, clip_networks=3.0, weight_decay=0.04)
    return config


def imagenet_vits() -> ConfigDict:
    """ViT-L, ViT-B, ViT-S+ and ViT-S of a ViT-7B at once, the authors' run dinov3_vitl16_lvd1689m_distilled.

    `method.teacher` is to be given, the directory of a run such as dinov3:imagenet_vit7b16_gram. The authors' run goes
    on with students that an earlier one has trained. Here config.begin may have the first student's weights; the other
    networks are new.
    """
    batch_size = 1920
    model = dict(model="vit_large_patch16_dinov3", rope_jitter=2.0)
    config = imagenet(model, batch_size=batch_size, steps=20 * EPOCH)
    config.shard_state = True
    jittered = (f"vit_{size}_patch16_dinov3(rope_jitter=2.0)" for size in ("base", "small_plus", "small"))
    config.method = dict(
        name="dinov3_distillation",
        teacher="",
        students=tuple(jittered),
        most_masked=128,  # half of 16 x 16 patches
        koleo_images=16,  # of ViT-L's devices
    )
    config.augment = views(256, 112, flip=0.0)
    config.optimizer = dict(
        name="adamw",
        lr=4 * 5e-5 * math.sqrt(batch_size / 1024),  # for this batch size; it does not follow --config.batch_size
        schedule="multistep",  # without milestones: constant after the warm-up
        weight_decay=0.04,
        warmup_steps=10 * EPOCH,
        clip_networks=3.0,
        patch_embed_lr_scale=0.2,
        layer_decay=0.99,
    )
    return config


def imagenet_convnexts() -> ConfigDict:
    """ConvNeXt-L, B, S and T at once. They see crops of 512 pixels, and the teacher the same ones of 256.

    `method.teacher` is to be given, the directory of a run such as dinov3:imagenet_vit7b16_gram, or imagenet_vitl16.
    """
    batch_size = 4096
    config = imagenet(dict(model="convnext_large"), batch_size=batch_size, steps=500 * EPOCH)
    config.shard_state = True
    scale = 4 * math.sqrt(batch_size / 1024)  # for this batch size; it does not follow --config.batch_size
    config.method = dict(
        name="dinov3_distillation",
        teacher="",
        teacher_scale=2,
        students=("convnext_base", "convnext_small", "convnext_tiny"),
        hidden=(2048, 2048),
        bottleneck=256,
        patch_hidden=(2048, 2048),
        patch_bottleneck=256,
        most_masked=128,  # half of 16 x 16 patches
        koleo_images=128,  # of a device, where 32 devices train each student
        warmup_temperature_epochs=epochs(120 * EPOCH, batch_size),
        freeze_epochs=epochs(EPOCH, batch_size),
    )
    config.augment = views(512, 224, flip=0.5)
    config.optimizer = dict(
        name="adamw",
        lr=scale * 1e-4,
        scaled_paths=(r"\w*head_convnext_(small|tiny)/", r"backbone_convnext_(small|tiny)/"),
        path_lr_scale=2.0,
        first_lr=1e-6,
        final_lr=scale * 1e-6,
        weight_decay=0.04,
        final_weight_decay=0.2,
        warmup_steps=80 * EPOCH,
        clip_networks=3.0,
    )
    return config


SCALES = {
    "tiny": tiny,
    "folder": recipes.folder(tiny),
    "imagenet_vits": imagenet_vits,
    "imagenet_convnexts": imagenet_convnexts,
}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("dinov3_distillation", scale, SCALES)

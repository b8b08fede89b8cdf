"""AIM: El-Nouby et al. 2024, arXiv:2401.08541. AIMv2, on images alone: Fini et al. 2024, arXiv:2411.14402."""

from typing import Any

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny_vit()
    config.batch_size = 128
    # 49 patches of 4 pixels, as in MAE's config.
    config.model.update(patch_size=4, **recipes.PATCHES_ALONE)
    config.method = dict(name="aim", head_depth=2)
    config.augment.view = recipes.tiny_view(crop_area=(0.4, 1.0), brightness=0.0, contrast=0.0)
    config.optimizer.update(b2=0.95, clip_norm=1.0)
    return config


def cifar_vits4() -> ConfigDict:
    """From no paper: ViT, batch and epochs of solo-learn's MAE on CIFAR-10; AIM's optimizer, scaled to the batch."""
    config = recipes.cifar_r18()
    config.model = dict(name="vit_small_patch16_224", patch_size=4, image_size=32, **recipes.PATCHES_ALONE)
    config.method = dict(name="aim", head_depth=12)
    config.augment.view = dict(size=(32, 32), crop_area=(0.4, 1.0), flip=0.5, interpolation="bicubic")
    config.optimizer = _adamw(recipes.lr_for(config, 1e-3 / 16), recipes.CIFAR_WARMUP)
    return config


def imagenet_600m() -> ConfigDict:
    """AIM-0.6B for 125,000 steps, on ImageNet. With two billion images of the web: 79.4 by an attentive probe."""
    config = recipes.imagenet(
        "vit_large_patch16_224",
        batch_size=4096,
        epochs=0,
        dim=1536,
        depth=24,
        heads=12,
        patch_size=14,
        **recipes.PATCHES_ALONE,
    )
    config.steps = 125_000
    config.method = dict(name="aim", head_depth=12, head_width=2048)
    config.augment.view = dict(size=(224, 224), crop_area=(0.4, 1.0), flip=0.5, interpolation="bicubic")
    config.optimizer = _adamw(recipes.lr_for(config, 1e-3 / 16), 31_250)
    return config


# AIMv2's networks.
V2: dict[str, Any] = dict(norm_kind="rms", norm_eps=1e-5, bias=False, qkv_bias=False, mlp="swiglu")


def tiny_v2() -> ConfigDict:
    """AIMv2 on images alone."""
    config = tiny()
    config.model.update(V2)
    config.method.update(causal_head=True, head_depth=1, head_heads=3)
    return config


def imagenet_vitl14_v2() -> ConfigDict:
    """AIMv2-L on images alone, with AIM's optimizer and steps. The authors train with texts, too."""
    config = imagenet_600m()
    hidden = 2 * 2816
    config.model.update(dim=1024, heads=8, mlp_ratio=hidden / 1024, **V2)
    config.model.update(positions="learned", image_size=224)
    config.method = dict(name="aim", head_depth=12, head_width=1024, causal_head=True, head_heads=8)
    return config


def _adamw(lr: Any, warmup_steps: int) -> dict[str, Any]:
    """The paper's optimizer. Its learning rate is 1e-3 at a batch of 4096."""
    return dict(name="adamw", lr=lr, weight_decay=0.05, b2=0.95, clip_norm=1.0, warmup_steps=warmup_steps, final_lr=0.0)


SCALES = {
    "tiny": tiny,
    "tiny_v2": tiny_v2,
    "folder": recipes.folder(tiny),
    "cifar_vits4": cifar_vits4,
    "imagenet_600m": imagenet_600m,
    "imagenet_vitl14_v2": imagenet_vitl14_v2,
}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("aim", scale, SCALES)

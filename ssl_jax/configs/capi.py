"""CAPI: Darcet et al. 2025, arXiv:2502.08769. The settings are those of default_pretrain_config.yaml, the authors'."""

from typing import Any

from ml_collections import ConfigDict

from ssl_jax import recipes

STYLE: dict[str, Any] = dict(norm_kind="rms", norm_eps=1e-5, bias=False, qkv_bias=False)
# The clusters' learning rate is half of that of the networks.
CLUSTERS: dict[str, Any] = dict(scaled_paths=("clustering/",), path_lr_scale=0.5)


def tiny() -> ConfigDict:
    config = recipes.tiny_vit()
    config.batch_size = 128
    # 49 patches of 4 pixels; the student sees 17 of them, and predicts 8 others.
    options = {**recipes.PATCHES_ALONE, "positions": "rope"}
    config.model.update(patch_size=4, heads=4, registers=4, **STYLE, **options)
    config.method = dict(
        name="capi",
        predicted=0.25,
        clusters=128,
        predictor_depth=2,
        decay=0.99,
        decay_warmup_steps=30,
    )
    config.augment.view = recipes.tiny_view(crop_area=(0.6, 1.0), jitter=0.0)
    config.mask = dict(kind="inverse", ratio=(0.65, 0.65), aspect=(0.5, 2.0))
    config.optimizer.update(lr=1e-3, b2=0.95, weight_decay=0.1, warmup_steps=30, **CLUSTERS)
    return config


def imagenet_vitl14() -> ConfigDict:
    """The default of the authors' code. With ImageNet-1k's images: 82.9 by an attentive probe."""
    config = recipes.imagenet(
        "vit_large_patch16_224",
        batch_size=16_384,
        epochs=0,
        patch_size=14,
        registers=16,
        drop_path=0.2,
        drop_path_uniform=True,
        **STYLE,
        **{**recipes.PATCHES_ALONE, "positions": "rope"},
    )
    config.steps = 500_000
    # 1.225 * 500,000 steps: after the warm-up the run has 0.8 of half a cosine.
    stretch = 1.225
    config.method = dict(name="capi", decay_stretch=stretch)
    config.augment.view = dict(size=(224, 224), crop_area=(0.6, 1.0), flip=0.5, interpolation="bicubic")
    config.mask = dict(kind="inverse", ratio=(0.65, 0.65), aspect=(0.5, 2.0))
    config.optimizer = dict(
        name="adamw",
        lr=1e-3,
        b2=0.95,
        weight_decay=0.1,
        warmup_steps=50_000,
        final_lr=0.0,
        schedule_stretch=stretch,
        patch_embed_lr_scale=0.2,
        **CLUSTERS,
    )
    config.shard_state = True
    config.model.update(remat="block", scan=True)
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "imagenet_vitl14": imagenet_vitl14}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("capi", scale, SCALES)

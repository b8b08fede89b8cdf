"""EVA: Fang et al. 2022, arXiv:2211.07636. MILAN: Hou et al. 2022, arXiv:2208.06049.

`method.teacher` is to be given, and `method.teacher_model` for a file that does not name its architecture. The papers'
teachers are CLIP's ViTs.
"""

from typing import Any

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    """EVA's way, with a teacher such as the directory of a run of ibot:tiny."""
    config = recipes.tiny_vit()
    config.batch_size = 128
    config.model.update(patch_size=4, pool="norm_mean")
    config.method = dict(name="feature_targets", teacher="", mask_ratio=0.4)
    config.augment.view = recipes.tiny_view(brightness=0.0, contrast=0.0)
    config.mask = dict(kind="block", ratio=(0.4, 0.4), min_patches=2)
    config.optimizer.update(b2=0.98, clip_norm=3.0)
    return config


def tiny_milan() -> ConfigDict:
    """MILAN's way; the teacher needs a class token, as one of ibot:tiny has."""
    config = tiny()
    config.model.update(positions="sincos")
    config.method.update(
        mask_ratio=0.75, by_attention=True, of_all=True, decoder_depth=1, decoder_dim=64, decoder_heads=4
    )
    config.mask = dict()
    config.optimizer.update(b2=0.95, clip_norm=None)
    return config


def imagenet_vitb16_milan() -> ConfigDict:
    """85.4 fine-tuned, 79.9 linear, with a ViT-B/16 of CLIP as the teacher."""
    config = recipes.imagenet("vit_base_patch16_224", batch_size=4096, epochs=400, positions="sincos", pool="norm_mean")
    config.method = dict(
        name="feature_targets",
        teacher="",
        teacher_model="vit_base_patch16_clip_quickgelu_224",
        mask_ratio=0.75,
        by_attention=True,
        of_all=True,
        decoder_depth=8,
        decoder_dim=512,
        decoder_heads=16,
    )
    config.augment.view = recipes.MAE_VIEW
    config.optimizer = recipes.mae_adamw(config)
    return config


def imagenet_vitg14_eva() -> ConfigDict:
    """EVA's 1.0B network, with a ViT-L/14 of CLIP as the teacher. Their data is 30 million images."""
    huge: dict[str, Any] = dict(dim=1408, depth=40, heads=16, mlp_ratio=6144 / 1408, patch_size=14)
    config = recipes.imagenet(
        "vit_large_patch16_224", batch_size=4096, epochs=150, pool="norm_mean", drop_path=0.1, **huge
    )
    ratio = 105 / 256  # 105 of 16 x 16 patches
    config.method = dict(
        name="feature_targets", teacher="", teacher_model="vit_large_patch14_clip_quickgelu_224", mask_ratio=ratio
    )
    config.augment.view = recipes.MAE_VIEW
    config.mask = dict(kind="block", ratio=(ratio, ratio), min_patches=16)
    config.optimizer = dict(
        name="adamw",
        lr=recipes.lr_for(config, 1e-3 / 16),
        weight_decay=0.05,
        b2=0.98,
        clip_norm=3.0,
        first_lr=1e-6,
        warmup_steps=recipes.imagenet_steps(2, 4096),
        final_lr=1e-5,
    )
    config.shard_state = True
    config.model.update(remat="block", scan=True)
    return config


SCALES = {
    "tiny": tiny,
    "tiny_milan": tiny_milan,
    "folder": recipes.folder(tiny),
    "imagenet_vitb16_milan": imagenet_vitb16_milan,
    "imagenet_vitg14_eva": imagenet_vitg14_eva,
}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("feature_targets", scale, SCALES)

"""data2vec 2.0: Baevski et al. 2022, arXiv:2212.07525. The ImageNet settings are those of the authors' code."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny_vit()
    config.batch_size = 64
    # 49 patches of 4 pixels; each of the 4 masks leaves 9 of them visible.
    config.model.update(patch_size=4, positions="sincos", pool="norm_mean")
    config.method = dict(
        name="data2vec2",
        masks=4,
        target_blocks=2,
        decoder_dim=96,
        decoder_depth=2,
        decoder_groups=4,
        decay=0.99,
        final_decay=0.999,
        decay_steps=200,
    )
    config.augment.view = recipes.tiny_view(crop_area=(0.5, 1.0))
    config.optimizer.update(b2=0.95, clip_norm=4.0)
    return config


def imagenet_vitb16() -> ConfigDict:
    """base_images_only_task.yaml; the authors' blocks differ, see the method's docstring."""
    model = dict(positions="sincos", pool="norm_mean")
    config = recipes.imagenet("vit_base_patch16_224", batch_size=256, epochs=75, **model)
    config.method = dict(
        name="data2vec2",
        masks=16,
        mask_ratio=0.8,
        mask_adjust=0.07,
        mask_block=3,
        target_blocks=10,
        decoder_dim=768,
        decoder_depth=6,
        decoder_groups=16,
        noise=0.01,
        class_weight=2.56,
        decay=0.9998,
        final_decay=0.99999,
        decay_steps=100_000,
    )
    config.augment.view = recipes.MAE_VIEW
    config.optimizer = dict(
        name="adamw",
        lr=recipes.lr_for(config, 1e-3),
        weight_decay=0.05,
        b2=0.95,
        clip_norm=4.0,
        warmup_steps=recipes.imagenet_steps(10, 256),
        final_lr=0.0,
    )
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "imagenet_vitb16": imagenet_vitb16}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("data2vec2", scale, SCALES)

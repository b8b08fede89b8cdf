"""I-JEPA: Assran et al. 2023, arXiv:2301.08243. The settings are those of in1k_vith14_ep300.yaml, the authors' code."""

from typing import Any

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny_vit()
    config.batch_size = 128
    # 49 patches of 4 pixels. Targets have 6 to 12 patches; contexts have half of all patches on average.
    config.model.update(patch_size=4, **recipes.PATCHES_ALONE)
    config.method = dict(name="ijepa", predictor_dim=48, predictor_depth=2, decay=0.99)
    config.augment.view = recipes.tiny_view(crop_area=(0.3, 1.0), flip=0.0, jitter=0.0)
    config.optimizer.update(lr=1e-3, weight_decay=0.04, final_weight_decay=0.4)
    return config


def cifar_vits4() -> ConfigDict:
    """64 patches of 4 pixels; the settings are ImageNet's, for a batch of 256. No accuracy is published."""
    config = recipes.cifar_r18()
    config.model = dict(name="vit_small_patch16_224", patch_size=4, image_size=32, **recipes.PATCHES_ALONE)
    config.method = dict(name="ijepa", predictor_depth=6)
    config.augment.view = dict(size=(32, 32), crop_area=(0.3, 1.0), flip=0.0)
    config.optimizer = _optimizer(config, recipes.CIFAR_WARMUP)
    return config


def _optimizer(config: ConfigDict, warmup_steps: int) -> dict[str, Any]:
    """At a batch of 2048, the learning rate rises from 2e-4 to 1e-3."""
    return dict(
        name="adamw",
        lr=recipes.lr_for(config, 1e-3 / 8),
        weight_decay=0.04,
        final_weight_decay=0.4,
        first_lr=recipes.lr_for(config, 2e-4 / 8),
        warmup_steps=warmup_steps,
        final_lr=1e-6,
    )


def _imagenet(model: str, epochs: int, predictor_depth: int, **options: Any) -> ConfigDict:
    config = recipes.imagenet(model, batch_size=2048, epochs=epochs, **recipes.PATCHES_ALONE, **options)
    # Contexts are cut as in the authors' code, where data.batch_size is 128 per device. The accuracies below are for
    # this cut. The largest contexts then have 0.38 of the patches.
    config.method = dict(name="ijepa", predictor_depth=predictor_depth, cut_images=128, margin=1, context_share=0.4)
    config.augment.view = dict(size=(224, 224), crop_area=(0.3, 1.0), flip=0.0)
    config.optimizer = _optimizer(config, recipes.imagenet_steps(40, 2048))
    return config


def imagenet_vitb16() -> ConfigDict:
    """72.9 linear, on the mean of the teacher's patches."""
    return _imagenet("vit_base_patch16_224", 600, predictor_depth=6)


def imagenet_vitl16() -> ConfigDict:
    """77.5 linear."""
    return _imagenet("vit_large_patch16_224", 600, predictor_depth=12)


def imagenet_vith14() -> ConfigDict:
    """79.3 linear. The options make the base model a ViT-H, with 16x16 patches of 14 pixels."""
    huge = dict(dim=1280, depth=32, heads=16, patch_size=14)
    return _imagenet("vit_base_patch16_224", 300, predictor_depth=12, **huge)


SCALES = {
    "tiny": tiny,
    "folder": recipes.folder(tiny),
    "cifar_vits4": cifar_vits4,
    "imagenet_vitb16": imagenet_vitb16,
    "imagenet_vitl16": imagenet_vitl16,
    "imagenet_vith14": imagenet_vith14,
}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("ijepa", scale, SCALES)

"""MAE: He et al. 2021, arXiv:2111.06377. The ImageNet settings are those of the authors' code."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny_vit()
    config.batch_size = 128
    # 49 patches of 4 pixels; the encoder sees 12 of them.
    config.model.update(patch_size=4, positions="sincos")
    config.method = dict(name="mae", mask_ratio=0.75, decoder_dim=64, decoder_depth=1, decoder_heads=4)
    config.augment.view = recipes.tiny_view(brightness=0.0, contrast=0.0)
    config.mask = dict(kind="random", ratio=(0.75, 0.75))
    config.optimizer.update(b2=0.95)
    return config


def continued() -> ConfigDict:
    """Given weights trained further, see recipes.continued.

    The decoder is new and has the paper's learning rate. The layer decay of the paper's fine-tuning, 0.75, gives the
    first block of a ViT-S a thirtieth of it.
    """
    config = recipes.continued(1.5e-4, layer_decay=0.75, weight_decay=0.05, b2=0.95)
    config.method = dict(name="mae", mask_ratio=0.75, normalize=True)
    config.augment.view = recipes.MAE_VIEW
    config.mask = dict(kind="random", ratio=(0.75, 0.75))
    return config


def cifar_vits4() -> ConfigDict:
    """solo-learn's settings, with patches of 4 pixels; no accuracy is published."""
    config = recipes.cifar_r18()
    config.model = dict(name="vit_small_patch16_224", heads=12, patch_size=4, image_size=32, positions="sincos")
    config.method = dict(name="mae", mask_ratio=0.75, decoder_dim=512, decoder_depth=8, decoder_heads=16)
    config.augment.view = dict(size=(32, 32), crop_area=(0.08, 1.0), flip=0.5, interpolation="bicubic")
    config.mask = dict(kind="random", ratio=(0.75, 0.75))
    config.optimizer = dict(
        name="adamw",
        lr=recipes.lr_for(config, 2e-4),
        weight_decay=0.05,
        b2=0.95,
        warmup_steps=recipes.CIFAR_WARMUP,
        final_lr=0.0,
    )
    return config


def _imagenet(model: str, epochs: int) -> ConfigDict:
    config = recipes.imagenet(model, batch_size=4096, epochs=epochs, positions="sincos")
    config.method = dict(name="mae", mask_ratio=0.75, normalize=True)
    config.augment.view = recipes.MAE_VIEW
    config.mask = dict(kind="random", ratio=(0.75, 0.75))
    config.optimizer = recipes.mae_adamw(config)
    return config


def imagenet_vitb16() -> ConfigDict:
    """83.6 fine-tuned, 68.0 linear."""
    return _imagenet("vit_base_patch16_224", 1600)


def imagenet_vitl16() -> ConfigDict:
    """85.9 fine-tuned, 75.8 linear."""
    return _imagenet("vit_large_patch16_224", 1600)


def pixio_vith16() -> ConfigDict:
    """Pixio on ImageNet, Yang et al. 2025, arXiv:2512.15715: its script for ViT-H, 642,000 steps."""
    vit = dict(patch_size=16, image_size=256, positions="learned", registers=7, drop_path=0.4)
    config = recipes.imagenet("vit_huge_patch14_224", batch_size=8192, epochs=4115, **vit)
    config.method = dict(
        name="mae",
        mask_ratio=0.75,
        normalize=True,
        decoder_dim=512,
        decoder_depth=32,
        decoder_heads=16,
        decoder_positions="learned",
    )
    config.augment.view = dict(size=(256, 256), crop_area=(0.2, 1.0), flip=0.0, interpolation="bicubic")
    config.mask = dict(kind="random", ratio=(0.75, 0.75), unit=4)
    config.optimizer = dict(
        name="adamw",
        lr=recipes.lr_for(config, 2.5e-5),
        weight_decay=0.05,
        b2=0.95,
        warmup_steps=40 * 1605,
        final_lr=0.0,
    )
    return config


SCALES = {
    "tiny": tiny,
    "folder": recipes.folder(tiny),
    "continue": continued,
    "cifar_vits4": cifar_vits4,
    "imagenet_vitb16": imagenet_vitb16,
    "imagenet_vitl16": imagenet_vitl16,
    "pixio_vith16": pixio_vith16,
}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("mae", scale, SCALES)

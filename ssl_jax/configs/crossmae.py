"""CrossMAE: Fu et al. 2024, arXiv:2401.14391. The ImageNet settings are those of the authors' code."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny_vit()
    config.batch_size = 128
    # 49 patches of 4 pixels; the encoder sees 12 of them.
    config.model.update(patch_size=4, positions="sincos")
    config.method = dict(name="crossmae", mask_ratio=0.75, decoder_dim=64, decoder_depth=2, decoder_heads=4)
    config.augment.view = recipes.tiny_view(brightness=0.0, contrast=0.0)
    config.mask = dict(kind="random", ratio=(0.75, 0.75))
    config.optimizer.update(b2=0.95)
    return config


def _imagenet(model: str, *, decoder_dim: int, decoder_heads: int) -> ConfigDict:
    config = recipes.imagenet(model, batch_size=4096, epochs=800, positions="sincos")
    config.method = dict(
        name="crossmae",
        mask_ratio=0.75,
        prediction_ratio=0.75,  # for less, the authors multiply the learning rate by prediction_ratio / mask_ratio
        normalize=True,
        decoder_dim=decoder_dim,
        decoder_depth=12,
        decoder_heads=decoder_heads,
    )
    config.augment.view = recipes.MAE_VIEW
    config.mask = dict(kind="random", ratio=(0.75, 0.75))
    config.optimizer = recipes.mae_adamw(config)
    return config


def imagenet_vits16() -> ConfigDict:
    """79.3 fine-tuned."""
    return _imagenet("vit_small_patch16_224", decoder_dim=256, decoder_heads=8)


def imagenet_vitb16() -> ConfigDict:
    """83.7 fine-tuned."""
    return _imagenet("vit_base_patch16_224", decoder_dim=512, decoder_heads=16)


SCALES = {
    "tiny": tiny,
    "folder": recipes.folder(tiny),
    "imagenet_vits16": imagenet_vits16,
    "imagenet_vitb16": imagenet_vitb16,
}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("crossmae", scale, SCALES)

"""FCMAE: Woo et al. 2023, arXiv:2301.00808. The ImageNet settings are those of the authors' code."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.batch_size = 128
    # 49 squares of 4 pixels; the encoder sees 20 of them.
    config.model = dict(name="convnextv2_atto", stages=(1, 1), base_width=32, patch_size=2)
    config.method = dict(name="fcmae", decoder_dim=64, decoder_depth=1)
    config.augment.view = recipes.tiny_view(brightness=0.0, contrast=0.0)
    config.mask = dict(kind="random", ratio=(0.6, 0.6))
    config.optimizer.update(lr=2e-3, weight_decay=0.05, b2=0.95)
    return config


def _imagenet(model: str) -> ConfigDict:
    config = recipes.imagenet(model, batch_size=4096, epochs=1600)
    config.method = dict(name="fcmae", normalize=True, decoder_dim=512, decoder_depth=1)
    config.augment.view = recipes.MAE_VIEW
    config.mask = dict(kind="random", ratio=(30 / 49, 30 / 49))  # 0.6 of 7 x 7 squares of 32 pixels, rounded up
    config.optimizer = recipes.mae_adamw(config)
    return config


def imagenet_atto() -> ConfigDict:
    """76.7 fine-tuned."""
    return _imagenet("convnextv2_atto")


def imagenet_base() -> ConfigDict:
    """84.9 fine-tuned."""
    return _imagenet("convnextv2_base")


def imagenet_large() -> ConfigDict:
    """85.8 fine-tuned."""
    return _imagenet("convnextv2_large")


SCALES = {
    "tiny": tiny,
    "folder": recipes.folder(tiny),
    "imagenet_atto": imagenet_atto,
    "imagenet_base": imagenet_base,
    "imagenet_large": imagenet_large,
}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("fcmae", scale, SCALES)

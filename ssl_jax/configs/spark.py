"""SparK: Tian et al. 2023, arXiv:2301.03580. The ImageNet settings are those of the authors' code."""

from typing import Any

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.batch_size = 128
    # 16 squares of 8 pixels; the encoder sees 6 of them.
    config.method = dict(name="spark", decoder_width=64)
    config.augment.view = recipes.tiny_view(size=(32, 32), brightness=0.0, contrast=0.0)
    config.mask = dict(kind="random", ratio=(0.6, 0.6))
    return config


def _imagenet(
    model: str,
    *,
    pixels: int = 224,
    batch_size: int = 4096,
    lr: float = 2e-4,
    ratio: float = 0.6,
    b2: float,
    **options: Any,
) -> ConfigDict:
    config = recipes.imagenet(model, batch_size=batch_size, epochs=1600, **options)
    config.data.image_size = (pixels, pixels)
    config.method = dict(name="spark", decoder_width=768)
    config.augment.view = dict(size=(pixels, pixels), crop_area=(0.67, 1.0), flip=0.5, interpolation="bicubic")
    config.mask = dict(kind="random", ratio=(ratio, ratio))
    config.optimizer = dict(
        name="lamb",
        lr=recipes.lr_for(config, lr),
        first_lr=recipes.lr_for(config, 0.005 * lr),
        final_lr=recipes.lr_for(config, 0.001 * lr),
        warmup_steps=recipes.imagenet_steps(40, batch_size),
        weight_decay=0.04,
        final_weight_decay=0.2,
        b2=b2,
        exempt=(*recipes.VECTORS, "mask_token"),
        clip_norm=5.0,
    )
    return config


def imagenet_r50() -> ConfigDict:
    """80.6 fine-tuned."""
    return _imagenet("resnet50", b2=0.95, zero_init_residual=True)


def imagenet_convnext_base() -> ConfigDict:
    """84.8 fine-tuned."""
    return _imagenet("convnext_base", b2=0.999, drop_path=0.3)


def imagenet_convnext_large_384() -> ConfigDict:
    """86.0 fine-tuned at 384 pixels, which it is trained on from the start."""
    return _imagenet("convnext_large", pixels=384, batch_size=2048, lr=4e-4, ratio=0.75, b2=0.999, drop_path=0.4)


SCALES = {
    "tiny": tiny,
    "folder": recipes.folder(tiny),
    "imagenet_r50": imagenet_r50,
    "imagenet_convnext_base": imagenet_convnext_base,
    "imagenet_convnext_large_384": imagenet_convnext_large_384,
}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("spark", scale, SCALES)

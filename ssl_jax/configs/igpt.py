"""iGPT: Chen et al. 2020, Generative pretraining from pixels."""

from typing import Any

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.batch_size = 64
    config.data.update(mean=(0.5,), std=(0.5,))
    # 196 tokens of 16 grays.
    config.model = dict(name="igpt_small", dim=64, heads=4, depth=4, image_size=14, colors=16, feature_block=3)
    config.method = dict(name="igpt", palette_steps=10)
    config.augment.view = recipes.tiny_view(crop_area=(0.8, 1.0), brightness=0.0, contrast=0.0)
    config.optimizer = dict(name="adam", lr=3e-3, b2=0.95, weight_decay=0.0, warmup_steps=50, final_lr=0.0)
    return config


def imagenet_small() -> ConfigDict:
    """iGPT-S at 32 x 32 pixels, a million steps."""
    return _imagenet("igpt_small", lr=3e-3)


def imagenet_large() -> ConfigDict:
    """iGPT-L at 32 x 32 pixels, a million steps: 96.3 on CIFAR-10 by a linear layer."""
    return _imagenet("igpt_large", lr=1e-3)


def _imagenet(model: str, lr: float) -> ConfigDict:
    config = recipes.imagenet(model, batch_size=128, epochs=0, image_size=32, colors=512)
    config.steps = 1_000_000
    config.data.update(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    config.method = dict(name="igpt", palette_steps=100)
    # Squares of 224 pixels of images whose shorter side has 256 to 384.
    area: Any = ((224 / 384) ** 2, (224 / 256) ** 2)
    config.augment.view = dict(size=(32, 32), crop_area=area, crop_aspect=(1.0, 1.0), flip=0.0)
    config.optimizer = dict(
        name="adam",
        lr=lr,
        b2=0.95,
        weight_decay=0.0,
        warmup_steps=recipes.imagenet_steps(1, 128),
        final_lr=0.0,
    )
    return config


SCALES = {
    "tiny": tiny,
    "folder": recipes.folder(tiny),
    "imagenet_small": imagenet_small,
    "imagenet_large": imagenet_large,
}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("igpt", scale, SCALES)

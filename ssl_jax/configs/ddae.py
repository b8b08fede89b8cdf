"""DDAE: Xiang et al. 2023, arXiv:2303.09769."""

from typing import Any

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.batch_size = 64
    config.data.update(mean=(0.5,), std=(0.5,))
    config.model = dict(
        name="ddpm_unet",
        base_width=16,
        multipliers=(1, 2, 4),
        blocks=1,
        attention_at=(2,),
        norm_groups=8,
        dropout=0.0,
        feature_step=1,
        feature_block=1,  # the lowest resolution: 64 channels
    )
    config.method = dict(name="ddae", decay=0.99)
    config.augment.view = recipes.tiny_view(crop_area=(0.8, 1.0), brightness=0.0, contrast=0.0)
    config.optimizer = dict(name="adam", lr=2e-3, weight_decay=0.0, clip_norm=1.0, warmup_steps=50, final_lr=0.0)
    return config


def cifar_ddpm() -> ConfigDict:
    """DDPM_ddpm.yaml of the authors: 90.05 by a linear layer, from the weights after 800 epochs."""
    config = _cifar(128)
    config.model = dict(
        name="ddpm_unet",
        base_width=128,
        multipliers=(1, 2, 2, 2),
        blocks=2,
        attention_at=(1,),
        residual_resampling=False,
        dropout=0.1,
        feature_step=11,
        feature_block=6,
    )
    return config


def cifar_ddpmpp() -> ConfigDict:
    """DDPM_ddpmpp.yaml of the authors: 93.97 by a linear layer, from the weights after 1200 epochs."""
    config = _cifar(64)
    config.model = dict(
        name="ddpm_unet",
        base_width=128,
        multipliers=(2, 2, 2),
        blocks=4,
        attention_at=(1,),
        residual_resampling=True,
        dropout=0.1,
        feature_step=11,
        feature_block=6,
    )
    return config


def _cifar(of_process: int) -> ConfigDict:
    """2000 epochs by four processes with batches of `of_process`, whose learning rates of 1e-4 they add up."""
    config = recipes.cifar_r18()
    config.batch_size = 4 * of_process
    config.epochs = 2000
    config.data.update(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    config.method = dict(name="ddae", decay=0.9999)
    config.augment.view = dict(size=(32, 32), shorter_side=32, flip=0.5)  # the whole image
    lr: Any = 4e-4
    config.optimizer = dict(
        name="adam",
        lr=lr,
        weight_decay=0.0,
        clip_norm=1.0,
        first_lr=lr / 13,
        warmup_steps=13 * (50_000 // config.batch_size),
        final_lr=lr,
    )
    return config


SCALES = {
    "tiny": tiny,
    "folder": recipes.folder(tiny),
    "cifar_ddpm": cifar_ddpm,
    "cifar_ddpmpp": cifar_ddpmpp,
}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("ddae", scale, SCALES)

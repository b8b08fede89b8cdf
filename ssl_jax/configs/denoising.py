"""Denoising autoencoder: Vincent et al. 2008; no paper has these networks."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.method = dict(name="denoising", noise="masking", level=0.5, decoder_width=16)
    config.augment.view = recipes.tiny_view(crop_area=(0.5, 1.0), brightness=0.0, contrast=0.0)
    return config


def cifar_r18() -> ConfigDict:
    config = recipes.cifar_r18()
    config.epochs = 200
    config.method = dict(name="denoising", noise="gaussian", level=0.5, decoder_width=64)
    config.augment.view = dict(size=(32, 32), crop_area=(0.6, 1.0), flip=0.5)
    config.optimizer = dict(name="adamw", lr=1e-3, weight_decay=1e-4, warmup_steps=recipes.CIFAR_WARMUP, final_lr=0.0)
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "cifar_r18": cifar_r18}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("denoising", scale, SCALES)

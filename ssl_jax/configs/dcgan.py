"""DCGAN: Radford, Metz & Chintala 2015, arXiv:1511.06434."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.batch_size = 128
    config.data.update(mean=(0.5,), std=(0.5,))
    config.model = dict(name="dcgan_discriminator", image_size=28, base_width=16)
    config.method = dict(name="dcgan", latent=100, generator_width=16)
    config.augment.view = recipes.tiny_view(crop_area=(0.8, 1.0), brightness=0.0, contrast=0.0)
    config.optimizer = dict(name="adam", lr=1e-3, b1=0.5, weight_decay=0.0, warmup_steps=0, final_lr=0.0)
    return config


def cifar() -> ConfigDict:
    """The paper's settings, on CIFAR-10 itself. Its 82.8, by an SVM, is for a discriminator trained on ImageNet."""
    config = recipes.cifar_r18()
    config.batch_size = 128
    config.epochs = 100
    config.data.update(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    config.model = dict(name="dcgan_discriminator", image_size=32, base_width=64)
    config.method = dict(name="dcgan", latent=100, generator_width=64)
    config.augment.view = dict(size=(32, 32), crop_area=(0.8, 1.0), flip=0.5)
    config.optimizer = dict(name="adam", lr=2e-4, b1=0.5, weight_decay=0.0, warmup_steps=0, final_lr=2e-4)
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "cifar": cifar}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("dcgan", scale, SCALES)

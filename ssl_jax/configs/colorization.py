"""Colorization: Zhang, Isola & Efros 2016, arXiv:1603.08511. The ImageNet settings are those of the authors' code."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    """On color images: see recipes.tiny_stamps. Gray images, such as Fashion-MNIST's, have no color to learn from.

    Half of the positions have no color; most are white. With the paper's uniform_share of 0.5 they count 100 times less
    than rare colors, and are drawn yellow. With 0.9 they count 12 times less.
    """
    config = recipes.tiny_stamps("lightness_resnet8", width=1.0)
    config.method = dict(name="colorization", uniform_share=0.9, temperature=0.38, decoder_width=64)
    return config


def cifar_r18() -> ConfigDict:
    """From no paper: the batch and epochs of rotation, with Adam."""
    config = recipes.cifar_r18()
    config.batch_size = 128
    config.epochs = 200
    config.model.update(name="lightness_resnet18", **recipes.data_normalization(config))
    config.method = dict(name="colorization", uniform_share=0.5, temperature=0.38, decoder_width=128)
    config.augment.view = dict(size=(32, 32), crop_area=(0.6, 1.0), flip=0.5)
    config.optimizer = dict(name="adam", lr=1e-3, b2=0.99, weight_decay=0.0, warmup_steps=1950, final_lr=0.0)
    return config


def imagenet_r50() -> ConfigDict:
    """40.1 linear with a ResNet-50. The paper's network is a VGG."""
    config = recipes.imagenet("lightness_resnet50", batch_size=40, epochs=0)
    config.steps = 500_000
    config.model.update(recipes.data_normalization(config))
    config.method = dict(name="colorization", uniform_share=0.5, temperature=0.38, decoder_width=256)
    # Squares with a side of 176 pixels, from images with a side of 256.
    config.augment.view = dict(size=(176, 176), crop_area=(0.47, 0.47), crop_aspect=(1.0, 1.0), flip=0.5)
    config.optimizer = recipes.colorization_adam(positions=44**2)
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "cifar_r18": cifar_r18, "imagenet_r50": imagenet_r50}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("colorization", scale, SCALES)

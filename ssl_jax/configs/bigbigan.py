"""BigBiGAN: Donahue & Simonyan 2019, arXiv:1907.02544."""

from typing import Any

from ml_collections import ConfigDict

from ssl_jax import recipes

# The encoder's learning rate is ten times that of the others.
ENCODER: dict[str, Any] = dict(scaled_paths=("backbone", "code"), path_lr_scale=10.0)


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.batch_size = 64
    config.data.update(mean=(0.5,), std=(0.5,))
    config.method = dict(
        name="bigbigan",
        latent=50,
        generator_width=16,
        discriminator_width=16,
        hidden=64,
        blocks=1,
        encoder_hidden=128,
        encoder_blocks=1,
    )
    config.augment.view = recipes.tiny_view(crop_area=(0.8, 1.0), brightness=0.0, contrast=0.0)
    config.optimizer = dict(name="adam", lr=5e-4, b1=0.5, weight_decay=0.0, warmup_steps=0, final_lr=0.0, **ENCODER)
    return config


def cifar_r18() -> ConfigDict:
    """Numbers of a port for 32 pixels (LEGO999/BigBiGAN-TensorFlow2.0), with the paper's encoder and learning rate."""
    config = recipes.cifar_r18()
    config.batch_size = 256
    config.epochs = 50
    config.data.update(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    config.method = dict(
        name="bigbigan",
        latent=100,
        generator_width=64,
        discriminator_width=64,
        hidden=64,
        blocks=3,
        encoder_hidden=256,
        encoder_blocks=2,
    )
    config.augment.view = dict(size=(32, 32), crop_area=(0.8, 1.0), flip=0.5)
    config.optimizer = dict(name="adam", lr=2e-4, b1=0.5, weight_decay=0.0, warmup_steps=0, final_lr=2e-4, **ENCODER)
    return config


def imagenet_r50() -> ConfigDict:
    """The paper's ResNet-50 (56.6 by a linear layer), here of images of 128 pixels, as the generator's, not 256."""
    config = recipes.imagenet("resnet50", batch_size=2048, epochs=0)
    config.steps = 500_000
    config.data.update(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), image_size=(128, 128))
    config.method = dict(
        name="bigbigan",
        latent=120,
        generator_width=96,
        discriminator_width=96,
        hidden=2048,
        blocks=4,
        encoder_hidden=4096,
        encoder_blocks=2,
    )
    config.augment.view = dict(size=(128, 128), crop_area=(0.2, 1.0), flip=0.5)
    config.optimizer = dict(name="adam", lr=2e-4, b1=0.0, weight_decay=0.0, warmup_steps=0, final_lr=2e-4, **ENCODER)
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "cifar_r18": cifar_r18, "imagenet_r50": imagenet_r50}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("bigbigan", scale, SCALES)

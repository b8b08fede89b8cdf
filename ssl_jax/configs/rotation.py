"""Rotation: Gidaris, Singh & Komodakis 2018, arXiv:1803.07728."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.batch_size = 128  # each image passes as four copies
    config.method = dict(name="rotation")
    config.augment.view = recipes.tiny_view(crop_area=(0.5, 1.0))
    return config


def cifar_r18() -> ConfigDict:
    """The authors' settings for CIFAR-10, with another network."""
    config = recipes.cifar_r18()
    config.batch_size = 128
    config.epochs = 200
    # From their dataloader.py.
    config.data.update(mean=(125.3 / 255, 123.0 / 255, 113.9 / 255), std=(63.0 / 255, 62.1 / 255, 66.7 / 255))
    config.method = dict(name="rotation")
    config.augment.view = dict(size=(32, 32), shorter_side=32, padding=4, flip=0.5)
    config.optimizer = dict(
        name="sgd",
        lr=0.1,
        weight_decay=5e-4,
        nesterov=True,
        warmup_steps=0,
        **recipes.in_steps(60, 120, 160, of=200, gamma=0.2),
    )
    return config


def imagenet_r50() -> ConfigDict:
    """48.2 linear in VISSL.

    Its rotnet_8gpu_resnet.yaml takes one turn of each image, not all four. VISSL flips after turning, which makes 90
    and 270 degrees alike. Here images are flipped first, as in the authors' code.
    """
    config = recipes.imagenet("resnet50", batch_size=256, epochs=105)
    config.method = dict(name="rotation", all_turns=False)
    config.augment.view = dict(size=(224, 224), crop_area=(0.08, 1.0), flip=0.5)
    config.optimizer = recipes.pretext_sgd(config, 0.1)
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "cifar_r18": cifar_r18, "imagenet_r50": imagenet_r50}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("rotation", scale, SCALES)

"""SwAV: Caron et al. 2020, arXiv:2006.09882."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.method = dict(name="swav", projector=(256, 64), prototypes=128, local_views=2, freeze_steps=20)
    config.augment = {"global": recipes.tiny_view(), "local": recipes.tiny_local()}
    return config


def cifar_r18() -> ConfigDict:
    """solo-learn's settings, two crops: 89.17 linear."""
    config = recipes.cifar_r18()
    config.method = dict(
        name="swav",
        projector=(2048, 128),
        prototypes=3000,
        local_views=0,
        freeze_steps=2 * 195,  # 2 epochs
        queue_size=3840,
        queue_start=50 * 195,  # epoch 50
    )
    config.augment = {"global": recipes.CIFAR_SYMMETRIC}
    config.optimizer = recipes.cifar_lars(config, 0.6, weight_decay=1e-6)
    return config


def imagenet_r50() -> ConfigDict:
    """The authors' 800 epochs with batches of 4096, two crops of 224 and six of 96 pixels: 75.3 linear.

    72.1, 73.9 and 74.6 after 100, 200 and 400 epochs.
    """
    config = recipes.imagenet("resnet50", batch_size=4096, epochs=800)
    config.method = dict(
        name="swav", projector=(2048, 128), prototypes=3000, local_views=6, epsilon=0.05, freeze_steps=313
    )
    config.augment = {"global": recipes.SWAV, "local": recipes.SWAV_LOCAL}
    # 4.8 at batch 4096
    config.optimizer = recipes.larc(config, 0.3, warmup_steps=recipes.imagenet_steps(10, 4096))
    return config


def imagenet_r50_2x224() -> ConfigDict:
    """Without the small crops, 400 epochs: 70.1 linear."""
    config = imagenet_r50()
    config.epochs = 400
    config.method.local_views = 0
    config.augment = {"global": dict(recipes.SWAV, crop_area=(0.08, 1.0))}
    return config


def imagenet_r50_b256() -> ConfigDict:
    """Batches of 256 with a queue, 200 epochs: 72.7 linear.

    As in the authors' code, the queue starts at epoch 15, and there is no warm-up.
    """
    config = imagenet_r50()
    config.batch_size = 256
    config.epochs = 200
    config.method.update(freeze_steps=5005, queue_size=3840, queue_start=recipes.imagenet_steps(15, 256))
    config.optimizer = recipes.larc(config, 0.6, warmup_steps=0)
    return config


SCALES = {
    "tiny": tiny,
    "folder": recipes.folder(tiny),
    "cifar_r18": cifar_r18,
    "imagenet_r50": imagenet_r50,
    "imagenet_r50_2x224": imagenet_r50_2x224,
    "imagenet_r50_b256": imagenet_r50_b256,
}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("swav", scale, SCALES)

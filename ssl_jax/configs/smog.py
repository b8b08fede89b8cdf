"""SMoG: Pang et al. 2022, arXiv:2207.06167."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.method = dict(
        name="smog",
        projector=(256, 64),
        predictor=(256, 64),
        groups=128,
        temperature=0.1,
        beta=0.99,
        decay=0.99,
        queue_size=4096,
        reset_every=100,
    )
    config.augment.view = recipes.tiny_view()
    return config


def cifar_r18() -> ConfigDict:
    """lightly's settings for CIFAR-10, here with batches of 256.

    lightly has 74.3 kNN after 200 epochs with batches of 128, and 80.0 after 800 epochs with batches of 512.
    """
    config = recipes.cifar_r18()
    config.epochs = 200
    config.method = dict(
        name="smog",
        projector=(2048, 128),
        predictor=(2048, 128),
        groups=300,
        temperature=0.1,
        beta=0.99,
        decay=0.99,
        queue_size=300 * 256,  # all projections of the steps between two resets
        reset_every=300,
        reset_teacher=True,
    )
    # lightly solarizes the second view with probability 0.2, the first never. Here both views are of one kind.
    config.augment.view = {**recipes.CIFAR_1, "crop_area": (0.2, 1.0), "jitter": 1.0, "interpolation": "bilinear"}
    config.optimizer = dict(
        name="sgd", lr=recipes.lr_for(config, 0.01), weight_decay=1e-6, warmup_steps=0, final_lr=0.0
    )
    return config


def imagenet_r50() -> ConfigDict:
    """Two crops of 224 pixels. For these no result of the paper is known; see imagenet_r50_multicrop.

    Groups, heads, temperature and beta are the paper's; augmentation and optimizer are SwAV's.
    """
    config = recipes.imagenet("resnet50", batch_size=4096, epochs=400)
    config.method = dict(
        name="smog",
        projector=(2048, 128),
        predictor=(2048, 128),
        groups=3000,
        temperature=0.1,
        beta=0.99,
        decay=0.99,
        queue_size=65_536,
        reset_every=300,
    )
    config.augment.view = dict(recipes.SWAV, crop_area=(0.08, 1.0))
    # 4.8 at batch 4096
    config.optimizer = recipes.larc(config, 0.3, warmup_steps=recipes.imagenet_steps(10, 4096))
    return config


def imagenet_r50_multicrop() -> ConfigDict:
    """The paper has 76.4 linear after 400 epochs, with four small crops. Here the crops are SwAV's."""
    config = imagenet_r50()
    config.method.local_views = 4
    config.augment = dict(view=recipes.SWAV, local=recipes.SWAV_LOCAL)
    return config


SCALES = {
    "tiny": tiny,
    "folder": recipes.folder(tiny),
    "cifar_r18": cifar_r18,
    "imagenet_r50": imagenet_r50,
    "imagenet_r50_multicrop": imagenet_r50_multicrop,
}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("smog", scale, SCALES)

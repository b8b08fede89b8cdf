"""PCL: Li et al. 2020, arXiv:2005.04966."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.data.split = recipes.QUARTER  # clustered at the end of each epoch
    config.model.update(batch_norm="grouped", batch_norm_groups=8)
    config.method = dict(
        name="pcl",
        projector=(256, 64),
        clusters=(32, 64, 128),
        negatives=128,
        temperature=0.1,
        decay=0.99,
        queue_size=4096,
        warmup_epochs=1.0,
        cluster_every=1.0,
        iterations=10,
        restarts=1,
    )
    config.augment.view = recipes.tiny_view()
    return config


def cifar_r18() -> ConfigDict:
    """From no paper: MoCo v2's demonstration, with clusters for 50,000 images.

    There are fewer negatives than clusters - batch.
    """
    config = recipes.cifar_r18()
    config.batch_size = 256
    config.epochs = 800
    config.model.update(batch_norm="grouped", batch_norm_groups=8)
    config.method = dict(
        name="pcl",
        projector=(512, 128),
        clusters=(250, 500, 1000),
        negatives=512,
        temperature=0.1,
        decay=0.99,
        queue_size=4096,
        warmup_epochs=20.0,
        cluster_every=1.0,
    )
    config.augment.view = {**recipes.CIFAR_WEAK, "blur": 0.0, "interpolation": "bilinear"}
    config.optimizer = dict(
        name="sgd", lr=recipes.lr_for(config, 0.03), weight_decay=5e-4, warmup_steps=0, final_lr=0.0
    )
    return config


def imagenet_r50() -> ConfigDict:
    """v2: 67.6 linear after 200 epochs."""
    config = recipes.imagenet("resnet50", batch_size=256, epochs=200, batch_norm="grouped", batch_norm_groups=8)
    config.method = dict(
        name="pcl",
        projector=(2048, 128),
        clusters=(25_000, 50_000, 100_000),
        negatives=16_384,
        temperature=0.2,
        decay=0.999,
        queue_size=16_384,
        warmup_epochs=20.0,
        cluster_every=1.0,
        iterations=20,
        restarts=5,
    )
    config.augment.view = recipes.MOCO_V2
    config.optimizer = dict(
        name="sgd", lr=recipes.lr_for(config, 0.03), weight_decay=1e-4, warmup_steps=0, final_lr=0.0
    )
    return config


def imagenet_r50_v1() -> ConfigDict:
    """61.5 linear."""
    config = imagenet_r50()
    config.method.projector = (128,)
    config.augment.view = recipes.MOCO_V1
    config.optimizer.update(recipes.in_steps(120, 160, of=200))  # main_pcl.py's default, without --cos
    return config


SCALES = {
    "tiny": tiny,
    "folder": recipes.folder(tiny),
    "cifar_r18": cifar_r18,
    "imagenet_r50": imagenet_r50,
    "imagenet_r50_v1": imagenet_r50_v1,
}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("pcl", scale, SCALES)

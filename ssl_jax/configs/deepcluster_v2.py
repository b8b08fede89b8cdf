"""DeepCluster-v2: Caron et al. 2020, arXiv:2006.09882, appendix D."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.data.split = recipes.QUARTER  # clustered twice an epoch
    config.method = dict(
        name="deepcluster_v2", projector=(256, 64), prototypes=(64, 64), local_views=2, cluster_every=0.5
    )
    config.augment = {"global": recipes.tiny_view(), "local": recipes.tiny_local()}
    config.optimizer.lr = 1e-3
    return config


def cifar_r18() -> ConfigDict:
    """solo-learn's settings, two crops: 88.85 linear."""
    config = recipes.cifar_r18()
    config.method = dict(
        name="deepcluster_v2", projector=(2048, 128), prototypes=(3000, 3000, 3000), local_views=0, cluster_every=1.0
    )
    config.augment = {"global": recipes.CIFAR_SYMMETRIC}
    config.optimizer = recipes.cifar_lars(config, 0.6, weight_decay=1e-6)
    config.optimizer.update(warmup_steps=11 * 195, final_lr=6e-4)  # solo-learn has these for DeepCluster-v2 only
    return config


def imagenet_r50() -> ConfigDict:
    """The authors' 800 epochs with batches of 4096, two crops of 224 and six of 96 pixels: 75.2 linear."""
    config = recipes.imagenet("resnet50", batch_size=4096, epochs=800)
    config.method = dict(
        name="deepcluster_v2", projector=(2048, 128), prototypes=(3000, 3000, 3000), local_views=6, cluster_every=1.0
    )
    config.augment = {"global": recipes.SWAV, "local": recipes.SWAV_LOCAL}
    # 4.8 at batch 4096
    config.optimizer = recipes.larc(config, 0.3, warmup_steps=recipes.imagenet_steps(10, 4096))
    return config


def imagenet_r50_2x224() -> ConfigDict:
    """Without the small crops, 400 epochs: 70.2 linear."""
    config = imagenet_r50()
    config.epochs = 400
    config.method.local_views = 0
    config.augment = {"global": dict(recipes.SWAV, crop_area=(0.08, 1.0))}
    return config


SCALES = {
    "tiny": tiny,
    "folder": recipes.folder(tiny),
    "cifar_r18": cifar_r18,
    "imagenet_r50": imagenet_r50,
    "imagenet_r50_2x224": imagenet_r50_2x224,
}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("deepcluster_v2", scale, SCALES)

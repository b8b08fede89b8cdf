"""SeLa-v2: Caron et al. 2020, arXiv:2006.09882, appendix D; SeLa: Asano et al. 2019, arXiv:1911.05371."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.data.split = recipes.TENTH  # labeled 20 times
    config.method = dict(
        name="sela_v2",
        projector=(256, 64),
        prototypes=(64, 64),
        local_views=2,
        strength=10.0,
        iterations=20,
        relabelings=20,
    )
    config.augment = {"global": recipes.tiny_view(), "local": recipes.tiny_local()}
    return config


def cifar_r18() -> ConfigDict:
    """SeLa's heads and lambda for CIFAR. The two crops and the optimizer are those of solo-learn's DeepCluster-v2."""
    config = recipes.cifar_r18()
    config.method = dict(
        name="sela_v2", projector=(2048, 128), prototypes=(128,) * 10, local_views=0, strength=10.0, relabelings=100
    )
    config.augment = {"global": recipes.CIFAR_SYMMETRIC}
    config.optimizer = recipes.cifar_lars(config, 0.6, weight_decay=1e-6)
    config.optimizer.update(warmup_steps=11 * 195, final_lr=6e-4)  # solo-learn has these for DeepCluster-v2 only
    return config


def imagenet_r50() -> ConfigDict:
    """400 epochs with batches of 4096, two crops of 160 and four of 96 pixels: 71.8 linear."""
    config = recipes.imagenet("resnet50", batch_size=4096, epochs=400)
    config.method = dict(
        name="sela_v2",
        projector=(2048, 128),
        prototypes=(3000, 3000, 3000),
        local_views=4,
        strength=25.0,
        relabelings=400,
    )
    # VISSL's deepcluster_v2/transforms/multicrop_2x160_4x96.yaml; the authors have no script for SeLa-v2.
    large = dict(recipes.SWAV, size=(160, 160), crop_area=(0.08, 1.0))
    config.augment = {"global": large, "local": recipes.SWAV_LOCAL}
    # 4.8 at batch 4096
    config.optimizer = recipes.larc(config, 0.3, warmup_steps=recipes.imagenet_steps(10, 4096))
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "cifar_r18": cifar_r18, "imagenet_r50": imagenet_r50}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("sela_v2", scale, SCALES)

"""DeepCluster: Caron et al. 2018, arXiv:1807.05520."""

from typing import Any

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.data.split = recipes.TENTH
    # A new classifier needs the 46 steps of two epochs; more clusters would need more. The features have 64 dimensions.
    config.method = dict(name="deepcluster", clusters=30, pca=16, cluster_every=2.0, iterations=20, balance=0.5)
    config.augment.view = recipes.tiny_view()
    config.optimizer.lr = 8e-3
    return config


def cifar_r18() -> ConfigDict:
    """From no paper: the authors' optimizer, with ten times as many clusters as classes."""
    config = recipes.cifar_r18()
    config.epochs = 500
    config.method = dict(name="deepcluster", clusters=100, pca=256, cluster_every=1.0, iterations=20, balance=1.0)
    config.augment.view = recipes.CIFAR_WEAK
    config.optimizer = sgd(config)
    return config


def imagenet_r50() -> ConfigDict:
    """OpenSelfSup's settings for ResNet-50 (configs/selfsup/deepcluster/r50.py), 200 epochs of batches of 512."""
    config = recipes.imagenet("resnet50", batch_size=512, epochs=200)
    config.method = dict(name="deepcluster", clusters=10_000, pca=256, cluster_every=1.0, iterations=20, balance=1.0)
    config.augment.view = dict(
        size=(224, 224),
        crop_area=(0.08, 1.0),
        flip=0.5,
        rotate=2.0,
        **recipes.jitter(0.4, 0.4, 1.0, 0.5, 1.0),
        grayscale=0.2,
    )
    config.optimizer = sgd(config)  # 0.1 at batch 512
    return config


def sgd(config: ConfigDict) -> dict[str, Any]:
    """The authors': a constant learning rate, and no momentum for the classifier."""
    return dict(
        name="sgd",
        lr=recipes.lr_for(config, 0.05),
        without_momentum=("classifier/",),
        weight_decay=1e-5,
        warmup_steps=0,
        schedule="multistep",
        milestones=(),
    )


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "cifar_r18": cifar_r18, "imagenet_r50": imagenet_r50}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("deepcluster", scale, SCALES)

"""ClusterFit: Yan et al. 2019, arXiv:1912.03330."""

from ml_collections import ConfigDict

from ssl_jax import recipes

WHOLE = dict(crop_area=(1.0, 1.0), crop_aspect=(1.0, 1.0), flip=0.0, brightness=0.0, contrast=0.0)


def tiny() -> ConfigDict:
    """`method.teacher` is to be given, such as the directory of a run of rotation:tiny."""
    config = recipes.tiny()
    config.data.split = recipes.QUARTER
    config.method = dict(name="clusterfit", teacher="", clusters=100, iterations=20)
    config.augment = dict(view=recipes.tiny_view(), whole=recipes.tiny_view(**WHOLE))
    config.optimizer.lr = 2e-3
    return config


def imagenet_r50() -> ConfigDict:
    """VISSL's: of a ResNet-50 that was trained by rotation, 16,000 clusters."""
    config = recipes.imagenet("resnet50", batch_size=256, epochs=105)
    config.method = dict(name="clusterfit", teacher="", clusters=16_000, iterations=50)
    config.augment = dict(
        view=dict(size=(224, 224), crop_area=(0.08, 1.0), flip=0.5, **recipes.jitter(0.4, 0.4, 0.4, 0.2, 1.0)),
        whole=dict(size=(224, 224), shorter_side=256, flip=0.0, jitter=0.0),
    )
    config.optimizer = recipes.pretext_sgd(config, 0.1)
    config.optimizer.update(warmup_steps=recipes.imagenet_steps(5, 256), first_lr=recipes.lr_for(config, 0.025))
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "imagenet_r50": imagenet_r50}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("clusterfit", scale, SCALES)

"""ODC: Zhan et al. 2020, arXiv:2006.10645."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.data.split = recipes.QUARTER
    config.method = dict(
        name="odc", projector=(256, 64), clusters=30, momentum=0.5, min_size=10, move_every=10, first_epochs=1.0
    )
    config.augment.view = recipes.tiny_view()
    config.optimizer.lr = 2e-3
    return config


def cifar_r18() -> ConfigDict:
    """From no paper: the authors' optimizer and heads, with ten times as many clusters as classes."""
    config = recipes.cifar_r18()
    config.epochs = 500
    config.method = dict(name="odc", projector=(512, 256), clusters=100, momentum=0.5, min_size=20, move_every=10)
    config.augment.view = recipes.CIFAR_WEAK
    config.optimizer = dict(
        name="sgd",
        lr=recipes.lr_for(config, 0.03),
        without_momentum=("classifier/",),
        weight_decay=1e-5,
        warmup_steps=0,
        final_lr=0.0,
    )
    return config


def imagenet_r50() -> ConfigDict:
    """57.6 linear."""
    config = recipes.imagenet("resnet50", batch_size=512, epochs=440)
    config.method = dict(name="odc", projector=(512, 256), clusters=10_000, momentum=0.5, min_size=20, move_every=10)
    # OpenSelfSup, configs/selfsup/odc/r50_v1.py.
    config.augment.view = dict(
        size=(224, 224),
        crop_area=(0.08, 1.0),
        flip=0.5,
        rotate=2.0,
        **recipes.jitter(0.4, 0.4, 1.0, 0.5, 1.0),
        grayscale=0.2,
    )
    # 0.06 at batch 512
    config.optimizer = dict(
        name="sgd",
        lr=recipes.lr_for(config, 0.03),
        without_momentum=("classifier/",),
        weight_decay=1e-5,
        warmup_steps=0,
        **recipes.in_steps(400, of=440, gamma=0.4),  # the authors' r50_v1.py
    )
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "cifar_r18": cifar_r18, "imagenet_r50": imagenet_r50}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("odc", scale, SCALES)

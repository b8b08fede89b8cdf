"""InstDisc (NPID): Wu et al. 2018, arXiv:1805.01978."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.data.split = recipes.TENTH  # in the first epoch the bank is still random
    # Cross entropy over all 6,000 images: in so few steps, noise-contrastive estimation learns more slowly.
    config.method = dict(name="instdisc", dim=64, temperature=0.1, negatives=0, momentum=0.5)
    config.augment.view = recipes.tiny_view()
    return config


def cifar_r18() -> ConfigDict:
    """The authors' settings for CIFAR-10: 80.8 kNN."""
    config = recipes.cifar_r18()
    config.batch_size = 128
    config.epochs = 200
    config.method = dict(name="instdisc", dim=128, temperature=0.1, negatives=0, momentum=0.5)
    # MoCo v1's augmentation, which is this method's but for the flip.
    config.augment.view = {**recipes.MOCO_V1, "size": (32, 32), "flip": 0.0}
    config.optimizer = dict(
        name="sgd", lr=0.03, weight_decay=5e-4, warmup_steps=0, **recipes.in_steps(120, 160, of=200)
    )
    return config


def imagenet_r50() -> ConfigDict:
    """46.5 weighted kNN, 54.0 linear."""
    config = recipes.imagenet("resnet50", batch_size=256, epochs=200)
    config.method = dict(name="instdisc", dim=128, temperature=0.07, negatives=4096, softmax=False, momentum=0.5)
    config.augment.view = recipes.MOCO_V1
    config.optimizer = dict(
        name="sgd",
        lr=recipes.lr_for(config, 0.03),
        weight_decay=1e-4,
        warmup_steps=0,
        **recipes.in_steps(120, 160, of=200),  # the authors' main.py
    )
    return config


def imagenet_r50_softmax() -> ConfigDict:
    """The authors' later model, with cross entropy over 65,536 negatives: 58.5 linear."""
    config = imagenet_r50()
    config.method.update(negatives=65_536, softmax=True)
    return config


SCALES = {
    "tiny": tiny,
    "folder": recipes.folder(tiny),
    "cifar_r18": cifar_r18,
    "imagenet_r50": imagenet_r50,
    "imagenet_r50_softmax": imagenet_r50_softmax,
}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("instdisc", scale, SCALES)

"""DCL: Yeh et al. 2021, arXiv:2110.06848. DCLW: the scales that end in _dclw, or --config.method.weighted=True."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.method = dict(name="dcl", temperature=0.1, weighted=False, sigma=0.5, projector=(256, 64))
    config.augment.view = recipes.tiny_view()
    return config


def cifar_r18() -> ConfigDict:
    """lightly's settings, 200 epochs with batches of 128: 84.4 kNN. 800 epochs with batches of 512: 87.4."""
    config = recipes.cifar_r18()
    config.batch_size = 128
    config.epochs = 200
    config.method = dict(name="dcl", temperature=0.1, weighted=False, sigma=0.5, projector=(512, 128))
    # SimCLR's color distortion of strength 0.5, without blur.
    config.augment.view = {**recipes.CIFAR_WEAK, "blur": 0.0, "interpolation": "bilinear"}
    # lr 0.06 at a batch of 128.
    config.optimizer = dict(
        name="sgd", lr=recipes.lr_for(config, 0.12), weight_decay=5e-4, warmup_steps=0, final_lr=0.0
    )
    return config


def cifar_r18_dclw() -> ConfigDict:
    """83.3 kNN at 200 epochs, 87.1 at 800."""
    config = cifar_r18()
    config.method.weighted = True
    return config


def imagenet_r50() -> ConfigDict:
    """lightly's settings, 100 epochs: 65.1 linear (its SimCLR: 63.2). The paper at 200: 65.9 (its SimCLR: 61.8)."""
    config = recipes.imagenet("resnet50", batch_size=256, epochs=100)
    config.method = dict(name="dcl", temperature=0.1, weighted=False, sigma=0.5, projector=(2048, 128))
    config.augment.view = recipes.SIMCLR
    # 0.075 times the root of the batch size, SimCLR's rule for small batches. It does not follow --config.batch_size.
    config.optimizer = dict(
        name="lars",
        lr=1.2,
        weight_decay=1e-6,
        warmup_steps=recipes.imagenet_steps(10, 256),
        final_lr=1.2e-3,
    )
    return config


def imagenet_r50_dclw() -> ConfigDict:
    """64.5 linear."""
    config = imagenet_r50()
    config.method.weighted = True
    return config


SCALES = {
    "tiny": tiny,
    "folder": recipes.folder(tiny),
    "cifar_r18": cifar_r18,
    "cifar_r18_dclw": cifar_r18_dclw,
    "imagenet_r50": imagenet_r50,
    "imagenet_r50_dclw": imagenet_r50_dclw,
}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("dcl", scale, SCALES)

"""FroSSL: Skean et al. 2023, arXiv:2310.02903. The settings are those of the authors' code.

There the invariance has a weight: 1 for CIFAR, 2 for ImageNet.
"""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    # More dimensions than images in a batch, as in the paper: the invariance grows with dim / batch_size.
    config.method = dict(name="frossl", projector=(256, 256, 1024), num_views=2)
    config.augment.view = recipes.tiny_view()
    return config


def cifar_r18() -> ConfigDict:
    """The authors' own code. In the code that they gave to solo-learn, the invariance has weight 1.4."""
    config = recipes.cifar_r18()
    config.method = dict(name="frossl", projector=(2048, 2048, 1024), num_views=2)
    config.augment.view = recipes.CIFAR_SYMMETRIC
    config.optimizer = recipes.cifar_lars(config, 0.3, weight_decay=1e-4)
    return config


def imagenet_r18() -> ConfigDict:
    """ResNet-18, as in the authors' code. The colors are those of solo-learn's VICReg."""
    config = recipes.imagenet("resnet18", batch_size=512, epochs=100)
    config.method = dict(name="frossl", projector=(2048, 2048, 1024), num_views=2, invariance=2.0)
    config.augment.view = dict(recipes.BYOL_1, crop_area=(0.2, 1.0), blur=0.5, solarize=0.1)
    config.optimizer = dict(
        name="larc",
        lr=recipes.lr_for(config, 0.3),
        weight_decay=1e-4,
        warmup_steps=recipes.imagenet_steps(10, 512),
        final_lr=0.0,
        trust_coefficient=0.02,
        clip=True,
        exempt=recipes.VECTORS,
    )
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "cifar_r18": cifar_r18, "imagenet_r18": imagenet_r18}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("frossl", scale, SCALES)

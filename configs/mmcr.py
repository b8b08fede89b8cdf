"""MMCR: Yerxa et al. 2023, arXiv:2303.03307."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.method = dict(name="mmcr", projector=(256, 64), num_views=2, weight=0.0, momentum=False, decay=0.99)
    config.augment = dict(view1=recipes.tiny_view(), view2=recipes.tiny_view())
    return config


def cifar_r18() -> ConfigDict:
    """MMCR as FroSSL's authors train it in solo-learn, with its common settings and 500 epochs, on CIFAR-10."""
    config = recipes.cifar_r18()
    config.epochs = 500
    config.method = dict(name="mmcr", projector=(2048, 512), num_views=2, weight=0.0, momentum=False, decay=0.99)
    view = {**recipes.CIFAR_SYMMETRIC, "blur": 0.0}
    config.augment = dict(view1=view, view2=dict(view))
    config.optimizer = recipes.cifar_lars(config, 0.3, weight_decay=1e-4)
    return config


def cifar_r50() -> ConfigDict:
    """The authors': 40 views of each of 32 images, a constant learning rate in place of this cosine."""
    config = cifar_r18()
    config.batch_size = 32
    config.model.name = "resnet50"
    config.method.update(projector=(512, 128), num_views=40)
    view = {**recipes.CIFAR_WEAK, "blur": 0.0, "interpolation": "bilinear"}
    config.augment = dict(view1=view, view2=dict(view))
    config.optimizer = dict(name="adam", lr=1e-3, weight_decay=1e-6, warmup_steps=0, final_lr=0.0)
    return config


def imagenet_r50() -> ConfigDict:
    """The authors' code, 100 epochs: 69.5 linear with 2 views, 71.4 with 4, 72.1 with 8."""
    config = recipes.imagenet("resnet50", batch_size=2048, epochs=100, zero_init_residual=True)
    config.method = dict(name="mmcr", projector=(8192, 8192, 512), num_views=2, weight=0.0, momentum=False, decay=0.99)
    config.augment = dict(view1=recipes.BYOL_1, view2=recipes.BYOL_2)
    config.optimizer = dict(
        name="lars",
        lr=recipes.lr_for(config, 0.6),
        weight_decay=1e-6,
        warmup_steps=recipes.imagenet_steps(10, 2048),
        final_lr=recipes.lr_for(config, 0.6 * 0.001),
    )
    return config


SCALES = {"tiny": tiny, "cifar_r18": cifar_r18, "cifar_r50": cifar_r50, "imagenet_r50": imagenet_r50}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("mmcr", scale, SCALES)

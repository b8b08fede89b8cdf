"""W-MSE: Ermolov et al. 2020, arXiv:2007.06346."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.method = dict(name="w_mse", projector=(256, 64), num_views=2, whiten_size=128, whiten_iterations=1, eps=0.0)
    config.augment.view = recipes.tiny_view()
    return config


def cifar_r18() -> ConfigDict:
    """solo-learn's settings: 88.67 linear."""
    config = recipes.cifar_r18()
    config.method = dict(name="w_mse", projector=(1024, 64), num_views=2, whiten_size=128, whiten_iterations=1, eps=0.0)
    config.augment.view = {**recipes.CIFAR_SYMMETRIC, "crop_area": (0.2, 1.0), "blur": 0.0}
    config.optimizer = dict(name="adam", lr=2e-3, weight_decay=1e-6, warmup_steps=recipes.CIFAR_WARMUP, final_lr=0.0)
    return config


def cifar_r18_w4() -> ConfigDict:
    """W-MSE 4, the authors' command: 91.99 linear, 89.87 5-NN (2 views with batches of 512: 91.55 and 89.69).

    Their code changes colors before it crops, so contrast is relative to the mean of the whole image.
    """
    config = cifar_r18()
    config.data.std = (0.2023, 0.1994, 0.2010)
    config.method.num_views = 4
    config.augment.view = {**recipes.CIFAR_WEAK, "crop_area": (0.2, 1.0), "grayscale": 0.1, "blur": 0.0}
    # A warm-up of 500 steps. The learning rate is 1/5 of its peak for the last 50 epochs, 1/25 for the last 25.
    config.optimizer.update(lr=3e-3, warmup_steps=500, **recipes.in_steps(950, 975, of=1000, gamma=0.2))
    return config


def imagenet_r50() -> ConfigDict:
    """The authors' command for ImageNet-100, W-MSE 4, with ResNet-50 instead of ResNet-18, on all of ImageNet.

    Their code (README) has no command for ImageNet. For the order of colors and crop, see cifar_r18_w4.
    """
    config = recipes.imagenet("resnet50", batch_size=256, epochs=240)
    config.method = dict(
        name="w_mse", projector=(1024, 128), num_views=4, whiten_size=256, whiten_iterations=1, eps=0.0
    )
    config.augment.view = recipes.SIMCLR
    config.optimizer = dict(
        name="adam", lr=2e-3, weight_decay=1e-6, warmup_steps=500, **recipes.in_steps(190, 215, of=240, gamma=0.2)
    )
    return config


SCALES = {
    "tiny": tiny,
    "folder": recipes.folder(tiny),
    "cifar_r18": cifar_r18,
    "cifar_r18_w4": cifar_r18_w4,
    "imagenet_r50": imagenet_r50,
}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("w_mse", scale, SCALES)

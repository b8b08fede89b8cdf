"""FastSiam: Pototzky et al. 2022, GCPR."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.batch_size = 128  # with four views, a step has as many images as a step of the other methods
    config.method = dict(name="fastsiam", projector=(256, 256), predictor=(64, 256), num_views=4)
    config.augment.view = recipes.tiny_view()
    # SGD, as for SimSiam.
    config.optimizer = dict(name="sgd", lr=0.3, weight_decay=5e-4, warmup_steps=30, final_lr=0.0)
    return config


def cifar_r18() -> ConfigDict:
    """lightly's settings, 200 epochs with batches of 128: 90.6 kNN, the best of all epochs."""
    config = recipes.cifar_r18()
    config.batch_size = 128
    config.epochs = 200
    config.method = dict(name="fastsiam", projector=(2048, 2048), predictor=(512, 2048), num_views=4)
    config.augment.view = {**recipes.CIFAR_WEAK, "crop_area": (0.2, 1.0), "blur": 0.0, "interpolation": "bilinear"}
    config.optimizer = dict(
        name="sgd", lr=recipes.lr_for(config, 0.12), weight_decay=5e-4, warmup_steps=0, final_lr=0.0
    )
    return config


def imagenet_r50() -> ConfigDict:
    """The paper's 25 epochs with batches of 32. All else is SimSiam's, with its learning rate scaled to this batch."""
    config = recipes.imagenet("resnet50", batch_size=32, epochs=25, zero_init_residual=True)
    config.method = dict(name="fastsiam", projector=(2048, 2048, 2048), predictor=(512, 2048), num_views=4)
    config.augment.view = recipes.MOCO_V2
    config.optimizer = dict(
        name="sgd", lr=recipes.lr_for(config, 0.05), weight_decay=1e-4, warmup_steps=0, final_lr=0.0
    )
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "cifar_r18": cifar_r18, "imagenet_r50": imagenet_r50}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("fastsiam", scale, SCALES)

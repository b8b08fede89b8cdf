"""SimSiam: Chen & He 2020, arXiv:2011.10566."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.method = dict(name="simsiam", projector=(256, 256, 256), predictor=(64, 256))
    config.augment.view = recipes.tiny_view()
    # SGD, as in the paper. With Adam SimSiam is prone to collapse.
    config.optimizer = dict(name="sgd", lr=0.3, weight_decay=5e-4, warmup_steps=30, final_lr=0.0)
    return config


def cifar_r18() -> ConfigDict:
    """The paper's appendix D: 91.8 linear after 800 epochs."""
    config = recipes.cifar_r18()
    config.batch_size = 512
    config.epochs = 800
    config.method = dict(name="simsiam", projector=(2048, 2048), predictor=(512, 2048))
    config.augment.view = {**recipes.CIFAR_WEAK, "crop_area": (0.2, 1.0), "blur": 0.0, "interpolation": "bilinear"}
    config.optimizer = dict(
        name="sgd", lr=recipes.lr_for(config, 0.03), weight_decay=5e-4, warmup_steps=0, final_lr=0.0
    )
    return config


def imagenet_r50() -> ConfigDict:
    """68.1 linear after 100 epochs; 70.0, 70.8 and 71.3 after 200, 400 and 800."""
    config = recipes.imagenet("resnet50", batch_size=512, epochs=100, zero_init_residual=True)
    config.method = dict(name="simsiam", projector=(2048, 2048, 2048), predictor=(512, 2048))
    config.augment.view = recipes.MOCO_V2
    config.optimizer = dict(
        name="sgd", lr=recipes.lr_for(config, 0.05), weight_decay=1e-4, warmup_steps=0, final_lr=0.0
    )
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "cifar_r18": cifar_r18, "imagenet_r50": imagenet_r50}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("simsiam", scale, SCALES)

"""CPC v2: Hénaff et al. 2019, arXiv:1905.09272; v1: van den Oord et al. 2018, arXiv:1807.03748."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.batch_size = 128  # each image gives 9 patches of 14 pixels, one every 7 pixels
    config.model.batch_norm = "layer"
    config.method = dict(
        name="cpc",
        grid=3,
        patch=14,
        flip=0.0,
        offsets=(1, 2),
        directions=1,
        target_dim=64,
        width=64,
        depth=3,
        scale=0.1,
    )
    config.augment.view = recipes.tiny_view(crop_area=(0.5, 1.0))
    return config


def cifar_r18() -> ConfigDict:
    """From no paper: 7x7 patches of 8 pixels, one every 4 pixels, with Adam as in v1."""
    config = recipes.cifar_r18()
    config.model.batch_norm = "layer"
    config.method = dict(
        name="cpc",
        grid=7,
        patch=8,
        flip=0.0,
        offsets=(2, 3, 4),
        directions=1,
        target_dim=64,
        width=256,
        depth=5,
        scale=0.1,
        chunk_size=4096,
    )
    config.augment.view = {**recipes.CIFAR_WEAK, "blur": 0.0, "crop_area": (0.5, 1.0)}
    config.optimizer = dict(name="adam", lr=2e-4, weight_decay=0.0, warmup_steps=0, final_lr=0.0)
    return config


def imagenet_r50() -> ConfigDict:
    """63.8 linear in the paper; 71.5 with its ResNet-161, which is not here.

    6x6 patches of 80 pixels, one every 36 pixels, from views of 260 pixels. Two of three channels are dropped. The
    paper evaluates an average of the weights; here none is taken.
    """
    config = recipes.imagenet("resnet50", batch_size=512, epochs=200, batch_norm="layer")
    config.method = dict(
        name="cpc",
        grid=6,
        patch=80,
        flip=0.5,
        drop_channels=1.0,
        offsets=(2, 3, 4, 5),
        directions=4,
        target_dim=64,
        width=256,
        depth=5,
        scale=0.1,
        chunk_size=4096,
    )
    config.augment.view = {**recipes.MOCO_V2, "size": (260, 260), "shorter_side": 300}
    # The paper's appendix.
    config.optimizer = dict(
        name="adam", lr=4e-4, b1=0.8, clip_norm=0.01, weight_decay=0.0, warmup_steps=0, final_lr=0.0
    )
    return config


def imagenet_r101_v1() -> ConfigDict:
    """v1, 48.7 linear: 7x7 patches of 64 pixels, one every 32 pixels, cropped to 60. It predicts only downwards.

    The paper's encoder is a ResNet-v2-101 up to the third stage, without normalization. Here it is a whole ResNet-101
    with LayerNorm. The paper's scores have full rank, which is 2048 here.
    """
    config = imagenet_r50()
    config.model.name = "resnet101"
    config.method.update(grid=7, patch=64, crop=60, flip=0.0, drop_channels=0.0, offsets=(2, 3, 4, 5, 6), directions=1)
    config.method.update(target_dim=2048)
    config.augment.view.update(size=(256, 256), brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, blur=0.0)
    config.augment.view.update(grayscale=1.0)
    config.optimizer = dict(name="adam", lr=2e-4, weight_decay=0.0, warmup_steps=0, final_lr=0.0)
    return config


SCALES = {
    "tiny": tiny,
    "folder": recipes.folder(tiny),
    "cifar_r18": cifar_r18,
    "imagenet_r50": imagenet_r50,
    "imagenet_r101_v1": imagenet_r101_v1,
}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("cpc", scale, SCALES)

"""Relative patch position: Doersch, Gupta & Efros 2015, arXiv:1505.05192."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.method = dict(name="relative_patch", tile=7, gap=2, drop_channels=0.0, pixelate=0.0, width=64)
    # Cells of 10 pixels.
    config.augment.view = recipes.tiny_view(size=(30, 30), crop_area=(0.6, 1.0))
    return config


def imagenet_r50() -> ConfigDict:
    """The authors' patches and gaps. The optimizer is that of Kolesnikov et al. 2019, arXiv:1901.09005."""
    config = recipes.imagenet("resnet50", batch_size=256, epochs=35)
    config.method = dict(name="relative_patch", tile=96, gap=48)
    # Cells of 158 pixels: patches are moved by up to 7 pixels to either side.
    config.augment.view = dict(size=(474, 474), crop_area=(0.5, 1.0), flip=0.0)
    config.optimizer = recipes.pretext_sgd(config, 0.1)
    config.optimizer.update(
        exempt=recipes.VECTORS, warmup_steps=recipes.imagenet_steps(5, 256), **recipes.in_steps(15, 25, of=35)
    )
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "imagenet_r50": imagenet_r50}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("relative_patch", scale, SCALES)

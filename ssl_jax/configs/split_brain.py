"""Split-brain autoencoder: Zhang, Isola & Efros 2017, arXiv:1611.09842."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    """On color images: see recipes.tiny_stamps."""
    config = recipes.tiny_stamps("split_resnet8", width=1.5, parts="lab")
    config.method = dict(name="split_brain", uniform_share=1.0, temperature=0.38, decoder_width=64)
    return config


def imagenet_r50() -> ConfigDict:
    """35.4 linear with an AlexNet. Its optimizer is not given; this one is colorization's, by the same authors."""
    config = recipes.imagenet("split_resnet50", batch_size=40, epochs=0, width=1.0, parts="lab")
    config.steps = 500_000
    config.model.update(recipes.data_normalization(config))
    config.method = dict(name="split_brain", uniform_share=1.0, temperature=0.38, decoder_width=256)
    # Squares with a side of 180 pixels, from images with a side of 256.
    config.augment.view = dict(size=(180, 180), crop_area=(0.494, 0.494), crop_aspect=(1.0, 1.0), flip=0.5)
    config.optimizer = recipes.colorization_adam(positions=45**2)
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "imagenet_r50": imagenet_r50}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("split_brain", scale, SCALES)

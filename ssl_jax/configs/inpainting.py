"""Inpainting: Pathak et al. 2016, arXiv:1604.07379."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.method = dict(name="inpainting", removed=0.25, decoder_width=16)
    config.augment.view = recipes.tiny_view(crop_area=(0.5, 1.0), brightness=0.0, contrast=0.0)
    return config


def imagenet_r50() -> ConfigDict:
    """The paper's network is an AlexNet. Adam is from the authors' code; the learning rate and its cosine are ours."""
    config = recipes.imagenet("resnet50", batch_size=256, epochs=100)
    config.method = dict(name="inpainting", removed=0.25, decoder_width=32)
    config.augment.view = dict(size=(224, 224), crop_area=(0.2, 1.0), flip=0.5)
    config.optimizer = dict(
        name="adam", lr=2e-4, b1=0.5, weight_decay=0.0, warmup_steps=recipes.imagenet_steps(1, 256), final_lr=0.0
    )
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "imagenet_r50": imagenet_r50}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("inpainting", scale, SCALES)

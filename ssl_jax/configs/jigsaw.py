"""Jigsaw: Noroozi & Favaro 2016, arXiv:1603.09246."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.method = dict(name="jigsaw", permutations=24, tile=8, channel_shift=0, width=64)
    # Cells of 10 pixels.
    config.augment.view = recipes.tiny_view(size=(30, 30), crop_area=(0.6, 1.0))
    return config


def imagenet_r50() -> ConfigDict:
    """VISSL's jigsaw_8gpu_resnet.yaml with 2000 permutations: 46.7 linear.

    Against the traces of color and contrast, VISSL only makes images gray. The paper shifts channels and normalizes
    tiles.
    """
    config = recipes.imagenet("resnet50", batch_size=256, epochs=105)
    config.method = dict(name="jigsaw", permutations=2000, tile=64, width=1000, channel_shift=0, normalize_tiles=False)
    # Cells of 85 pixels.
    config.augment.view = dict(size=(255, 255), shorter_side=256, flip=0.5, grayscale=0.66)
    config.optimizer = recipes.pretext_sgd(config, 0.1)
    # Five epochs of warm-up, from a quarter of the learning rate on. In VISSL only jigsaw_8gpu_resnet.yaml has them.
    config.optimizer.update(first_lr=recipes.lr_for(config, 0.025), warmup_steps=recipes.imagenet_steps(5, 256))
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "imagenet_r50": imagenet_r50}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("jigsaw", scale, SCALES)

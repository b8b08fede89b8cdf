"""CMAE: Huang et al. 2022, arXiv:2207.13532. The ImageNet settings are those of the authors' code."""

from ml_collections import ConfigDict

from ssl_jax import recipes

SHIFT = 31 / 224  # 31 pixels


def tiny() -> ConfigDict:
    config = recipes.tiny_vit()
    config.batch_size = 128
    # 49 patches of 4 pixels, of which the encoder sees 17. Squares of two patches would not fill 7 x 7.
    config.model.update(patch_size=4, positions="sincos")
    config.method = dict(
        name="cmae",
        mask_ratio=0.65,
        decoder_dim=64,
        decoder_depth=1,
        decoder_heads=4,
        feature_depth=1,
        projector=(192, 64),
        predictor=(192, 64),
        decay=0.99,
    )
    view = recipes.tiny_view(brightness=0.0, contrast=0.0)
    config.augment = dict(view=view, target=recipes.tiny_view(shift=SHIFT))
    config.mask = dict(kind="random", ratio=(0.65, 0.65))
    config.optimizer.update(b2=0.95)
    return config


def _imagenet(epochs: int) -> ConfigDict:
    config = recipes.imagenet("vit_base_patch16_224", batch_size=4096, epochs=epochs, positions="sincos")
    ratio = 32 / 49  # the authors' 0.65 of 7 x 7 squares of two patches, of which they keep 17
    config.method = dict(
        name="cmae",
        mask_ratio=ratio,
        normalize=True,
        decoder_dim=512,
        decoder_depth=8,
        decoder_heads=16,
        feature_depth=2,
        projector=(1536, 256),
        predictor=(1536, 256),
        temperature=0.07,
        contrastive=1.0,
        decay=0.996,
    )
    # The authors cut 224 of 256 pixels out of crops of 0.2 to 1 of the image's area: in each, one view at its corner.
    area = (0.2 * 0.875**2, 0.875**2)
    view = dict(size=(224, 224), crop_area=area, flip=0.5, interpolation="bicubic")
    colors = dict(**recipes.jitter(0.4, 0.4, 0.4, 0.1), grayscale=0.2, blur=0.5)
    config.augment = dict(view=view, target={**view, **colors, "shift": SHIFT})
    config.mask = dict(kind="random", ratio=(ratio, ratio), unit=2)
    config.optimizer = {**recipes.mae_adamw(config), "exempt": (*recipes.VECTORS, "cls_token", "mask_token")}
    return config


def imagenet_vitb16() -> ConfigDict:
    """84.7 fine-tuned."""
    return _imagenet(1600)


def imagenet_vitb16_300() -> ConfigDict:
    """83.8 fine-tuned."""
    return _imagenet(300)


SCALES = {
    "tiny": tiny,
    "folder": recipes.folder(tiny),
    "imagenet_vitb16": imagenet_vitb16,
    "imagenet_vitb16_300": imagenet_vitb16_300,
}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("cmae", scale, SCALES)

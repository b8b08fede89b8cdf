"""VISReg: Wu et al. 2026, arXiv:2606.02572. Settings are those of the authors' configs."""

from ml_collections import ConfigDict

from ssl_jax import recipes

# Both kinds of views have the same colors.
_COLORS = dict(recipes.jitter(0.4, 0.4, 0.2, 0.05), grayscale=0.2, blur=0.5, solarize=0.2, flip=0.5)
_GLOBAL = dict(_COLORS, size=(224, 224), crop_area=(0.3, 1.0), interpolation="bicubic")


def tiny() -> ConfigDict:
    """The weight of the authors' example for small data sets, imagenette.yaml; views as in lejepa's `tiny`."""
    config = recipes.tiny()
    config.method = dict(name="visreg", projector=(256, 256, 32), num_global=2, num_local=2, weight=0.6, directions=128)
    config.augment = {"global": recipes.tiny_view(), "local": recipes.tiny_local()}
    return config


def imagenet_vitb16() -> ConfigDict:
    """default.yaml, with 16 images on each of 8 GPUs as in the README's command."""
    config = recipes.imagenet("vit_base_patch16_224", batch_size=128, epochs=100, drop_path=0.1)
    config.method = dict(
        name="visreg",
        projector=(2048, 2048, 256),
        num_global=4,
        num_local=6,
        weight=0.9,
        directions=4096,
        scale_weight=1.0,
        shape_weight=1.0,
        center_weight=1.0,
    )
    config.augment = {"global": _GLOBAL, "local": dict(_GLOBAL, size=(96, 96), crop_area=(0.05, 0.3))}
    config.optimizer = dict(
        name="adamw",
        lr=9e-4,
        weight_decay=0.05,
        warmup_steps=recipes.imagenet_steps(5, 128),
        first_lr=9e-7,
        final_lr=9e-7,
        clip_norm=1.0,
    )
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "imagenet_vitb16": imagenet_vitb16}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("visreg", scale, SCALES)

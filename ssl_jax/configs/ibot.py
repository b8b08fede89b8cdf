"""iBOT: Zhou et al. 2021, arXiv:2111.07832."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny_vit()
    config.method = dict(
        name="ibot",
        local_views=2,
        prototypes=256,
        hidden=(256,),
        bottleneck=64,
        teacher_temperature=0.04,
        patch_teacher_temperature=0.04,
        warmup_temperature_epochs=0,
        decay=0.98,
        freeze_epochs=0,
    )
    config.augment = dict(
        global1=recipes.tiny_view(), global2=recipes.tiny_view(), local=recipes.tiny_local(size=(14, 14))
    )
    # Rectangles have at least (4 // 3) ** 2 patches, as the authors' 16 are (14 // 3) ** 2.
    config.mask = dict(kind="block", images=0.5, ratio=(0.1, 0.5), min_patches=1)
    config.optimizer.update(lr=1e-3, clip_each=3.0, weight_decay=0.04, final_weight_decay=0.4)
    return config


def _imagenet(model: str, epochs: int, least_global: float, clip_each: float) -> ConfigDict:
    config = recipes.imagenet(model, batch_size=1024, epochs=epochs, drop_path=0.1)
    config.method = dict(name="ibot", local_views=10, prototypes=8192, warmup_temperature_epochs=30, decay=0.996)
    config.augment = dict(
        global1={**recipes.DINO_1, "crop_area": (least_global, 1.0)},
        global2={**recipes.DINO_2, "crop_area": (least_global, 1.0)},
        local={**recipes.DINO_LOCAL, "crop_area": (0.05, least_global)},
    )
    config.mask = dict(kind="block", images=0.5, ratio=(0.1, 0.5), min_patches=16)
    config.optimizer = dict(
        name="adamw",
        lr=recipes.lr_for(config, 5e-4),
        weight_decay=0.04,
        final_weight_decay=0.4,
        warmup_steps=recipes.imagenet_steps(10, 1024),
        final_lr=1e-6,
        clip_each=clip_each,
    )
    return config


def imagenet_vits16() -> ConfigDict:
    """75.2 kNN, 77.9 linear, 82.3 fine-tuned."""
    config = _imagenet("vit_small_patch16_224", 800, least_global=0.25, clip_each=3.0)
    config.method.norm_last_layer = False
    return config


def imagenet_vitb16() -> ConfigDict:
    """77.1 kNN, 79.5 linear, 84.0 fine-tuned, after 400 epochs."""
    config = _imagenet("vit_base_patch16_224", 400, least_global=0.32, clip_each=0.3)
    config.method.freeze_epochs = 3
    return config


SCALES = {
    "tiny": tiny,
    "folder": recipes.folder(tiny),
    "imagenet_vits16": imagenet_vits16,
    "imagenet_vitb16": imagenet_vitb16,
}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("ibot", scale, SCALES)

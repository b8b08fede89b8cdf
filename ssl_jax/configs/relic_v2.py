"""ReLIC v2: Tomasev et al. 2022, arXiv:2201.05119; ReLIC: Mitrovic et al. 2020, arXiv:2010.07922."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.method = dict(
        name="relic_v2",
        large_views=2,
        local_views=2,
        projector=(256, 64),
        predictor=(256, 64),
        negatives=10,
        temperature=0.2,
        mask_probability=0.1,
        decay=0.99,
    )
    config.augment = dict(
        global1=recipes.tiny_view(),
        global2=recipes.tiny_view(),
        local=recipes.tiny_local(),
        whole=recipes.whole_view(28),
    )
    config.optimizer.lr = 8e-3
    return config


def imagenet_r50_v1() -> ConfigDict:
    """ReLIC with a target network, appendix E of its paper: 74.8 linear."""
    config = recipes.imagenet("resnet50", batch_size=4096, epochs=1000, zero_init_residual=True)
    config.method = dict(
        name="relic_v2",
        large_views=2,
        local_views=0,
        projector=(4096, 256),
        predictor=(4096, 256),
        negatives=0,
        temperature=0.2,
        invariance=1.0,
        mask_probability=0.0,
        decay=0.996,
    )
    config.augment = dict(global1=recipes.BYOL_1, global2=recipes.BYOL_2)
    config.optimizer = recipes.imagenet_lars(config, 0.2, weight_decay=1.5e-6)
    return config


def imagenet_r50() -> ConfigDict:
    """ReLIC v2: 77.1 linear, with the paper's backgrounds. These are found otherwise: see the method."""
    config = imagenet_r50_v1()
    config.method.update(large_views=4, local_views=2, negatives=10, mask_probability=0.1, grid=5, place_weight=1.0)
    config.augment = dict(
        global1={**recipes.BYOL_1, "crop_area": (0.14, 1.0)},
        global2={**recipes.BYOL_2, "crop_area": (0.14, 1.0)},
        local={**recipes.DINO_LOCAL, "crop_area": (0.05, 0.14)},
        whole=recipes.whole_view(56),
    )
    return config


SCALES = {
    "tiny": tiny,
    "folder": recipes.folder(tiny),
    "imagenet_r50": imagenet_r50,
    "imagenet_r50_v1": imagenet_r50_v1,
}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("relic_v2", scale, SCALES)

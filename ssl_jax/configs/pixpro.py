"""PixPro: Xie et al. 2020, arXiv:2011.10043."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    """Chosen on held-out training images. With one linear layer in the transform, or pairs further apart, positions
    become alike, and kNN falls below that of the untrained network."""
    config = recipes.tiny()
    config.method = dict(name="pixpro", projector=(256, 64), transform_layers=2, reach=0.4)
    config.augment = dict(view1=recipes.tiny_view(), view2=recipes.tiny_view())
    config.optimizer.lr = 8e-3
    return config


def imagenet_r50() -> ConfigDict:
    """The authors' tools/pixpro_base_r50_100ep.sh. Their longer run has 400 epochs."""
    config = recipes.imagenet("resnet50", batch_size=1024, epochs=100, zero_init_residual=True)
    config.method = dict(name="pixpro", projector=(4096, 256), transform_layers=1, sharpness=2.0, reach=0.7, decay=0.99)
    views = dict(interpolation="bilinear")
    config.augment = dict(view1={**recipes.BYOL_1, **views}, view2={**recipes.BYOL_2, **views})
    config.optimizer = dict(
        name="lars",
        lr=recipes.lr_for(config, 1.0),
        weight_decay=1e-5,
        warmup_steps=recipes.imagenet_steps(5, 1024),
        first_lr=recipes.lr_for(config, 0.01),
        final_lr=1e-6,
    )
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "imagenet_r50": imagenet_r50}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("pixpro", scale, SCALES)

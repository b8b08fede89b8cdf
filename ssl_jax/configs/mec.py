"""MEC: Liu et al. 2022, arXiv:2210.11464."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    # dim / distortion is 32 at scale imagenet_r50, and 4 here: resnet8's features fill fewer directions, and a run has
    # four epochs.
    config.method = dict(
        name="mec",
        projector=(256, 256, 256),
        predictor=(64, 256),
        distortion=64.0,
        warmup_epochs=1,
        decay=0.99,
    )
    config.augment = dict(view1=recipes.tiny_view(), view2=recipes.tiny_view())
    config.optimizer = dict(name="sgd", lr=0.3, weight_decay=5e-4, warmup_steps=30, final_lr=0.0)
    return config


def imagenet_r50() -> ConfigDict:
    """The defaults of the authors' main_pretrain.py, for 100 epochs."""
    config = recipes.imagenet("resnet50", batch_size=1024, epochs=100, zero_init_residual=True)
    config.method = dict(
        name="mec",
        projector=(2048, 2048, 2048),
        predictor=(512, 2048),
        distortion=64.0,
        order=4,
        warmup_factor=8.0,
        warmup_epochs=10,
        decay=0.996,
    )
    views = dict(crop_area=(0.2, 1.0), interpolation="bilinear")
    config.augment = dict(view1={**recipes.BYOL_1, **views}, view2={**recipes.BYOL_2, **views})
    config.optimizer = dict(
        name="sgd",
        lr=recipes.lr_for(config, 0.5),
        weight_decay=1e-5,
        warmup_steps=recipes.imagenet_steps(10, 1024),
        final_lr=0.0,
    )
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "imagenet_r50": imagenet_r50}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("mec", scale, SCALES)

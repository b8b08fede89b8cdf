"""DetCon: Henaff et al. 2021, arXiv:2103.10957."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    # A map has 4 x 4 positions.
    config.method = dict(name="detcon", projector=(256, 64), predictor=(256, 64), segments=4, grid=2, decay=0.99)
    config.augment = dict(view1=recipes.tiny_view(), view2=recipes.tiny_view(), whole=recipes.whole_view(28))
    return config


def imagenet_r50() -> ConfigDict:
    """DetCon-B of the authors' detcon_b_config.py, 100 epochs. The segments are not theirs: see the method."""
    config = recipes.imagenet("resnet50", batch_size=4096, epochs=100, zero_init_residual=True)
    config.method = dict(
        name="detcon",
        projector=(4096, 256),
        predictor=(4096, 256),
        temperature=0.1,
        segments=16,
        grid=5,
        place_weight=1.0,
        decay=0.996,
    )
    config.augment = dict(view1=recipes.BYOL_1, view2=recipes.BYOL_2, whole=recipes.whole_view(56))
    config.optimizer = dict(
        name="lars",
        lr=recipes.lr_for(config, 0.2),
        weight_decay=1.5e-6,
        warmup_steps=recipes.imagenet_steps(1, 4096),
        final_lr=0.0,
    )
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "imagenet_r50": imagenet_r50}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("detcon", scale, SCALES)

"""CoKe: Qian et al. 2022, arXiv:2105.11527. ImageNet's settings are those of the authors' scripts."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.data.split = recipes.TENTH  # an image's label is of the epoch before
    config.method = dict(
        name="coke",
        projector=(256, 256, 64),
        predictor=(256, 64),
        clusters=(48, 64, 80),
        num_views=2,
        temperature=0.1,
        dual_rate=0.5,
        still_epochs=0.0,
    )
    config.augment = dict(view1=recipes.tiny_view(), view2=recipes.tiny_view())
    return config


def imagenet_r50() -> ConfigDict:
    """Two views of 224 pixels, 1001 epochs: 74.9 linear."""
    config = recipes.imagenet("resnet50", batch_size=1024, epochs=1001)
    config.method = dict(
        name="coke",
        projector=(2048, 2048, 128),
        predictor=(2048, 128),
        clusters=(3000, 4000, 5000),
        num_views=2,
        temperature=0.05,
        hard_share=0.2,
        prediction_share=0.5,
        bound=0.4,
        dual_rate=20.0,
        still_epochs=1.0,
    )
    views = dict(interpolation="bilinear")
    config.augment = dict(view1={**recipes.BYOL_1, **views}, view2={**recipes.BYOL_2, **views})
    config.optimizer = dict(
        name="lars",
        lr=recipes.lr_for(config, 0.4),  # 1.6 at batch 1024
        weight_decay=1e-6,
        warmup_steps=recipes.imagenet_steps(11, 1024),
        final_lr=0.0,
    )
    return config


def imagenet_r50_single() -> ConfigDict:
    """One view, in its first stage: the labels are never averaged. 72.5 linear with both stages."""
    config = imagenet_r50()
    config.method.update(num_views=1, temperature=0.1, prediction_share=1.0)
    config.augment = dict(view1={**recipes.SIMCLR, "interpolation": "bilinear"})
    return config


SCALES = {
    "tiny": tiny,
    "folder": recipes.folder(tiny),
    "imagenet_r50": imagenet_r50,
    "imagenet_r50_single": imagenet_r50_single,
}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("coke", scale, SCALES)

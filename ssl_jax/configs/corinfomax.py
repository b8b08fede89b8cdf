"""CorInfoMax: Ozsoy et al. 2022, arXiv:2209.07999."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    # 250 and 0.01 as the authors have them for CIFAR-10, with as many dimensions.
    config.method = dict(name="corinfomax", projector=(256, 256, 64), attraction=250.0, memory=0.01)
    config.augment = dict(view1=recipes.tiny_view(), view2=recipes.tiny_view())
    return config


def imagenet_r50() -> ConfigDict:
    """The command of the authors' README: 69.08 linear."""
    config = recipes.imagenet("resnet50", batch_size=1536, epochs=100, zero_init_residual=True)
    config.method = dict(name="corinfomax", projector=(8192, 8192, 512), attraction=2000.0, memory=0.1, eps=1e-8)
    config.augment = dict(view1=recipes.BYOL_1, view2=recipes.BYOL_2)
    config.optimizer = dict(
        name="sgd",
        lr=recipes.lr_for(config, 0.2 / 6),  # 0.2 at batch 1536
        first_lr=3e-3,
        weight_decay=1e-4,
        warmup_steps=recipes.imagenet_steps(10, 1536),
        final_lr=1e-6,
    )
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "imagenet_r50": imagenet_r50}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("corinfomax", scale, SCALES)

"""MSF: Koohpayegani et al. 2021, arXiv:2105.07269."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.method = dict(name="msf", projector=(256, 64), predictor=(256, 64), neighbors=5, decay=0.99, queue_size=4096)
    config.augment = dict(student=recipes.tiny_view(), teacher=recipes.tiny_view(brightness=0.0, contrast=0.0))
    config.optimizer.lr = 8e-3
    return config


def imagenet_r50() -> ConfigDict:
    """The command of the authors' README: 72.4 linear."""
    config = recipes.imagenet("resnet50", batch_size=256, epochs=200, zero_init_residual=False)
    config.method = dict(
        name="msf", projector=(4096, 512), predictor=(4096, 512), neighbors=10, decay=0.99, queue_size=128_000
    )
    config.augment = dict(student=recipes.MOCO_V2, teacher=dict(size=(224, 224), crop_area=(0.2, 1.0), flip=0.5))
    config.optimizer = dict(
        name="sgd", lr=recipes.lr_for(config, 0.05), weight_decay=1e-4, warmup_steps=0, final_lr=0.0
    )
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "imagenet_r50": imagenet_r50}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("msf", scale, SCALES)

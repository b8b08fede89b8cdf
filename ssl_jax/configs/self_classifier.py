"""Self-Classifier: Amrani, Karlinsky & Bronstein 2021, arXiv:2103.10994."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.method = dict(name="self_classifier", projector=(256, 64), classes=100, classifiers=4, temperature=0.1)
    config.augment.view = recipes.tiny_view()
    return config


def imagenet_r50() -> ConfigDict:
    """The authors' scripts/train.sh, 800 epochs on 16 GPUs."""
    config = recipes.imagenet("resnet50", batch_size=4096, epochs=800, zero_init_residual=False)
    config.method = dict(
        name="self_classifier", projector=(4096, 4096, 128), classes=1000, classifiers=30, temperature=0.1
    )
    config.augment.view = recipes.MOCO_V2
    larc = recipes.larc(config, 0.2, warmup_steps=recipes.imagenet_steps(10, 4096))
    config.optimizer = {**larc, "first_lr": 0.2, "weight_decay": 1e-4}
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "imagenet_r50": imagenet_r50}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("self_classifier", scale, SCALES)

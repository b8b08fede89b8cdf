"""CMC: Tian et al. 2019, arXiv:1906.05849."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    """Gray images have no colors. One half of the network sees the blurred image, the other half the rest."""
    config = recipes.tiny()
    config.data.split = recipes.TENTH  # in the first epoch the banks are still random
    config.model = dict(name="split_resnet8", width=1.5, parts="bands")
    # In so few steps, noise-contrastive estimation learns more slowly than the cross entropy.
    config.method = dict(name="cmc", dim=64, temperature=0.1, negatives=1024, softmax=True, momentum=0.5)
    config.augment.view = recipes.tiny_view()
    return config


def cifar_r18() -> ConfigDict:
    """From no paper: the ImageNet settings with InstDisc's batch and temperature."""
    config = recipes.cifar_r18()
    config.batch_size = 128
    config.epochs = 240
    config.model.update(name="split_resnet18", width=1.0, parts="lab", **recipes.data_normalization(config))
    config.method = dict(name="cmc", dim=128, temperature=0.1, negatives=4096, softmax=False, momentum=0.5)
    config.augment.view = dict(size=(32, 32), crop_area=(0.2, 1.0), flip=0.5)
    config.optimizer = dict(name="sgd", lr=0.03, weight_decay=5e-4, warmup_steps=0, final_lr=0.0)
    return config


def imagenet_r50() -> ConfigDict:
    """64 to 66 linear.

    The authors' command for resnet50v1 (README), and their train_CMC.py, where crops for ResNets have at least 8 % of
    the area.
    """
    config = recipes.imagenet("split_resnet50", batch_size=128, epochs=240, width=1.0, parts="lab")
    config.model.stem_width = 64  # each half has the stem of a whole ResNet
    config.model.update(recipes.data_normalization(config))
    config.method = dict(name="cmc", dim=128, temperature=0.07, negatives=16_384, softmax=False, momentum=0.5)
    config.augment.view = dict(size=(224, 224), crop_area=(0.08, 1.0), flip=0.5)
    # 0.03 at batch 128
    config.optimizer = dict(
        name="sgd",
        lr=recipes.lr_for(config, 0.06),
        weight_decay=1e-4,
        warmup_steps=0,
        **recipes.in_steps(120, 160, 200, of=240),
    )
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "cifar_r18": cifar_r18, "imagenet_r50": imagenet_r50}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("cmc", scale, SCALES)

"""LeJEPA: Balestriero & LeCun 2025, arXiv:2511.08544. Settings without a source are those of the authors' README."""

from ml_collections import ConfigDict

from ssl_jax import recipes

# Both kinds of views have the same colors.
_COLORS = dict(recipes.jitter(0.4, 0.4, 0.2, 0.1), grayscale=0.2, blur=0.5, solarize=0.2, flip=0.5)
_GLOBAL = dict(_COLORS, size=(224, 224), crop_area=(0.3, 1.0))


def tiny() -> ConfigDict:
    """Weight and number of views of the authors' minimal example (Imagenette); here half of the views are local."""
    config = recipes.tiny()
    config.method = dict(
        name="lejepa", projector=(256, 256, 32), num_global=2, num_local=2, weight=0.02, directions=128
    )
    config.augment = {"global": recipes.tiny_view(), "local": recipes.tiny_local()}
    return config


def cifar_r18() -> ConfigDict:
    """The authors' minimal example, MINIMAL.md: 90.7 by an online probe with ViT-S/8 on Imagenette at 128 pixels.

    The example has 4 views of one kind, 16 dimensions and 256 directions. Here it has ResNet-18, CIFAR's augmentation,
    and weight decay 5e-4, which the authors take for ResNets. The final learning rate is the README's; in the example
    it is half of the first.
    """
    config = recipes.cifar_r18()
    config.epochs = 800
    config.method = dict(
        name="lejepa", projector=(2048, 2048, 16), num_global=4, num_local=0, weight=0.02, directions=256
    )
    config.augment = {"global": {**recipes.CIFAR_SYMMETRIC, "interpolation": "bilinear", "solarize": 0.2}}
    # A warm-up of 1 epoch, which has 195 steps.
    config.optimizer = dict(name="adamw", lr=2e-3, weight_decay=5e-4, exempt=(), warmup_steps=195, final_lr=2e-6)
    return config


def imagenet_r50() -> ConfigDict:
    """The README gives no batch size and no epochs for this network: 512 is ours, 100 is from its table."""
    config = recipes.imagenet("resnet50", batch_size=512, epochs=100)
    config.method = dict(
        name="lejepa", projector=(2048, 2048, 64), num_global=2, num_local=6, weight=0.05, directions=1024
    )
    config.augment = {"global": _GLOBAL, "local": dict(_GLOBAL, size=(98, 98), crop_area=(0.05, 0.3))}
    config.optimizer = dict(
        name="adamw",
        lr=5e-4,
        weight_decay=5e-4,
        exempt=(),  # the minimal example decays every parameter
        warmup_steps=recipes.imagenet_steps(1, 512),
        final_lr=5e-7,
    )
    return config


def imagenet_vits16() -> ConfigDict:
    """ViT-S/16. Local views have 96 pixels, so that patches are whole. The paper's ViT-H/14 has about 79 linear."""
    config = imagenet_r50()
    config.model = dict(name="vit_small_patch16_224", drop_path=0.1)  # as in the minimal example
    config.augment["local"].size = (96, 96)
    config.optimizer.weight_decay = 0.05
    return config


SCALES = {
    "tiny": tiny,
    "folder": recipes.folder(tiny),
    "cifar_r18": cifar_r18,
    "imagenet_r50": imagenet_r50,
    "imagenet_vits16": imagenet_vits16,
}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("lejepa", scale, SCALES)

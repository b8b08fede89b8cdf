"""PIRL: Misra & van der Maaten 2019, arXiv:1912.01991."""

from typing import Any

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.data.split = recipes.TENTH  # in the first epoch the bank is still random
    config.method = dict(
        name="pirl",
        pretext="jigsaw",
        projector=(256, 64),
        temperature=0.1,
        negatives=2048,
        softmax=True,
        momentum=0.5,
        tile=8,
    )
    config.augment.image = recipes.tiny_view()
    # Cells of 10 pixels.
    config.augment.patches = recipes.tiny_view(size=(30, 30), crop_area=(0.6, 1.0))
    return config


def tiny_rotation() -> ConfigDict:
    """Images turned by quarters instead of tiles."""
    config = tiny()
    config.method.pretext = "rotation"
    config.augment.patches = recipes.tiny_view()
    return config


def cifar_r18() -> ConfigDict:
    """From no paper: ImageNet's settings with cells of 10 and tiles of 8 pixels, InstDisc's batch and temperature."""
    config = recipes.cifar_r18()
    config.batch_size = 128
    config.epochs = 200
    config.method = dict(
        name="pirl", pretext="jigsaw", projector=(128,), temperature=0.1, negatives=4096, momentum=0.5, tile=8
    )
    config.augment.image = _view(size=(32, 32), crop_area=(0.2, 1.0))
    config.augment.patches = _view(size=(30, 30), crop_area=(0.6, 1.0))
    config.optimizer = dict(name="sgd", lr=0.03, weight_decay=5e-4, warmup_steps=0, final_lr=0.0)
    return config


def imagenet_r50() -> ConfigDict:
    """VISSL's pirl_jigsaw_4node_resnet50.yaml: 62.55 linear after 200 epochs, 64.29 after 800. In the paper 63.6."""
    config = recipes.imagenet("resnet50", batch_size=1024, epochs=800)
    config.method = dict(
        name="pirl", pretext="jigsaw", projector=(128,), temperature=0.07, negatives=32_000, momentum=0.5, tile=64
    )
    config.augment.image = _view(size=(224, 224), crop_area=(0.08, 1.0))
    config.augment.patches = _view(size=(255, 255), crop_area=(0.6, 1.0))
    # 0.12 at batch 1024, down to 1.2e-4.
    lr = recipes.lr_for(config, 0.03)
    config.optimizer = dict(
        name="sgd", lr=lr, weight_decay=1e-4, exempt=recipes.VECTORS, warmup_steps=0, final_lr=lr * 1e-3
    )
    return config


def imagenet_r50_mlp() -> ConfigDict:
    """VISSL's variant: a hidden layer in the heads, and cross entropy over the image's own row and the negatives."""
    config = imagenet_r50()
    config.method.update(projector=(2048, 128), temperature=0.1, softmax=True)
    return config


def imagenet_r50_rotation() -> ConfigDict:
    config = imagenet_r50()
    config.method.pretext = "rotation"
    config.augment.patches = _view(size=(224, 224), crop_area=(0.08, 1.0))
    return config


def _view(**changes: Any) -> dict[str, Any]:
    return {**recipes.MOCO_V1, **recipes.jitter(0.4, 0.4, 0.4, 0.2, 1.0), "photometric": 0.66, **changes}


SCALES = {
    "tiny": tiny,
    "folder": recipes.folder(tiny),
    "tiny_rotation": tiny_rotation,
    "cifar_r18": cifar_r18,
    "imagenet_r50": imagenet_r50,
    "imagenet_r50_mlp": imagenet_r50_mlp,
    "imagenet_r50_rotation": imagenet_r50_rotation,
}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("pirl", scale, SCALES)

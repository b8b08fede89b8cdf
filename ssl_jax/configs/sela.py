"""SeLa: Asano, Rupprecht & Vedaldi 2019, arXiv:1911.05371. Settings are those of the authors' scripts."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.data.split = recipes.TENTH
    config.method = dict(
        name="sela", clusters=(64,) * 4, strength=10.0, iterations=20, tolerance=0.1, relabelings=20, spacing=1
    )
    config.augment.view = recipes.tiny_view()
    return config


def cifar_r18() -> ConfigDict:
    """The authors' labels and optimizer for CIFAR-10. Their AlexNet saw images of 224 pixels."""
    config = recipes.cifar_r18()
    config.epochs = 400
    config.batch_size = 128
    config.method = dict(
        name="sela", clusters=(128,) * 10, strength=10.0, iterations=50, tolerance=0.01, relabelings=400, spacing=1
    )
    config.augment.view = dict(recipes.MOCO_V1, size=(32, 32))
    config.optimizer = dict(
        name="sgd",
        lr=recipes.lr_for(config, 0.06),  # 0.03 at batch 128
        weight_decay=5e-4,
        warmup_steps=0,
        **recipes.in_steps(240, 320, of=400),
    )
    return config


def imagenet_r50() -> ConfigDict:
    """400 epochs with batches of 256, ten heads: 61.5 linear."""
    config = recipes.imagenet("resnet50", batch_size=256, epochs=400)
    config.method = dict(
        name="sela", clusters=(3000,) * 10, strength=25.0, iterations=50, tolerance=0.1, relabelings=100, spacing=2
    )
    config.augment.view = dict(recipes.MOCO_V1, crop_area=(0.08, 1.0))
    config.optimizer = dict(
        name="sgd",
        lr=recipes.lr_for(config, 0.08),
        weight_decay=1e-5,
        warmup_steps=0,
        **recipes.in_steps(150, 300, 350, of=400),
    )
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "cifar_r18": cifar_r18, "imagenet_r50": imagenet_r50}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("sela", scale, SCALES)

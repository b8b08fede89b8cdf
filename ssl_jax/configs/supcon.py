"""SupCon: Khosla et al. 2020, arXiv:2004.11362. It trains on labels."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.method = dict(name="supcon", temperature=0.1, base_temperature=0.07, projector=(256, 64))
    config.augment.view = recipes.tiny_view()
    return config


def cifar_r18() -> ConfigDict:
    """solo-learn's settings: 93.82 linear. Its form of the loss is not multiplied by a ratio of temperatures."""
    config = recipes.cifar_r18()
    config.method = dict(
        name="supcon", temperature=0.2, base_temperature=0.2, projector=(2048, 256), positives="inside"
    )
    config.augment.view = recipes.CIFAR_SYMMETRIC
    config.optimizer = dict(
        name="sgd",
        lr=recipes.lr_for(config, 0.4),
        weight_decay=1e-5,
        warmup_steps=recipes.CIFAR_WARMUP,
        final_lr=0.0,
    )
    return config


def cifar_r50() -> ConfigDict:
    """The authors' settings: 96.0 linear. Cross entropy has 95.0, their SimCLR 93.6."""
    config = recipes.cifar_r18()
    config.data.std = (0.2023, 0.1994, 0.2010)
    config.batch_size = 1024
    config.model.name = "resnet50"
    config.method = dict(name="supcon", temperature=0.1, base_temperature=0.07, projector=(2048, 128))
    config.augment.view = {**recipes.CIFAR_WEAK, "crop_area": (0.2, 1.0), "blur": 0.0, "interpolation": "bilinear"}
    # lr 0.5 at a batch of 1024; a warm-up of 10 epochs with 48 steps each.
    config.optimizer = dict(
        name="sgd",
        lr=recipes.lr_for(config, 0.125),
        weight_decay=1e-4,
        first_lr=0.01,
        warmup_steps=480,
        final_lr=recipes.lr_for(config, 0.125 * 0.001),
    )
    return config


def imagenet_r50() -> ConfigDict:
    """SimCLR's views and optimizer at the paper's temperature."""
    config = recipes.imagenet("resnet50", batch_size=4096, epochs=350, zero_init_residual=True)
    config.method = dict(name="supcon", temperature=0.1, base_temperature=0.07, projector=(2048, 128))
    config.augment.view = recipes.SIMCLR
    config.optimizer = dict(
        name="lars",
        lr_in_momentum=True,
        lr=recipes.lr_for(config, 0.3),
        weight_decay=1e-6,
        warmup_steps=recipes.imagenet_steps(10, 4096),
        final_lr=0.0,
    )
    return config


def imagenet_r50_autoaugment() -> ConfigDict:
    """The authors' code for ImageNet, google-research's supcon: 78.7 linear in the paper.

    Their code also scales embeddings to length 1 before the projector. Its weight decay, 1e-3, is part of the loss.
    """
    config = imagenet_r50()
    config.batch_size = 6144
    config.method.base_temperature = 1.0  # the loss is multiplied by the temperature
    config.augment.view = dict(
        size=(224, 224), crop_area=(0.08, 1.0), interpolation="bicubic", flip=0.5, policy="autoaugment"
    )
    config.optimizer.lr = recipes.lr_for(config, 0.4)
    config.optimizer.warmup_steps = recipes.imagenet_steps(12, 6144)
    return config


SCALES = {
    "tiny": tiny,
    "folder": recipes.folder(tiny),
    "cifar_r18": cifar_r18,
    "cifar_r50": cifar_r50,
    "imagenet_r50": imagenet_r50,
    "imagenet_r50_autoaugment": imagenet_r50_autoaugment,
}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("supcon", scale, SCALES)

"""ReSSL: Zheng et al. 2021, arXiv:2107.09282."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.model.update(batch_norm="grouped", batch_norm_groups=8)
    config.method = dict(
        name="ressl",
        projector=(256, 64),
        temperature=0.1,
        target_temperature=0.04,
        decay=0.99,
        final_decay=0.99,
        queue_size=4096,
    )
    config.augment = dict(student=recipes.tiny_view(), teacher=recipes.tiny_view(brightness=0.0, contrast=0.0))
    return config


def cifar_r18() -> ConfigDict:
    """solo-learn's settings: 90.63 linear, with BatchNorm over the batch and keys in the order of the queries.

    The queue is longer than the data set.
    """
    config = recipes.cifar_r18()
    config.method = dict(
        name="ressl",
        projector=(4096, 256),
        temperature=0.1,
        target_temperature=0.04,
        decay=0.99,
        final_decay=1.0,
        queue_size=65_536,
        shuffle=False,
    )
    no_color = dict(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, grayscale=0.0)
    config.augment = dict(
        student={**recipes.CIFAR_1, "blur": 0.5, "blur_kernel": 3}, teacher={**recipes.CIFAR_1, **no_color}
    )
    config.optimizer = dict(
        name="sgd",
        lr=recipes.lr_for(config, 0.05),
        weight_decay=1e-4,
        warmup_steps=recipes.CIFAR_WARMUP,
        final_lr=0.0,
    )
    return config


def imagenet_r50() -> ConfigDict:
    """The authors' ressl.py: 69.9 linear."""
    config = recipes.imagenet("resnet50", batch_size=256, epochs=200, batch_norm="grouped", batch_norm_groups=8)
    config.method = dict(
        name="ressl",
        projector=(4096, 512),
        temperature=0.1,
        target_temperature=0.04,
        decay=0.999,
        final_decay=0.999,
        queue_size=131_072,
    )
    config.augment = dict(student=recipes.MOCO_V2, teacher=dict(size=(224, 224), crop_area=(0.2, 1.0), flip=0.5))
    config.optimizer = dict(
        name="sgd",
        lr=recipes.lr_for(config, 0.05),
        weight_decay=1e-4,
        warmup_steps=recipes.imagenet_steps(5, 256),
        final_lr=0.0,
        exempt=recipes.VECTORS,
    )
    return config


def imagenet_r50_multicrop() -> ConfigDict:
    """The authors' ressl_multi.py and data/augmentation.py, with students of five sizes: 74.7 linear."""
    config = imagenet_r50()
    config.method.students = 5
    areas = {192: (0.172, 0.86), 160: (0.143, 0.715), 128: (0.114, 0.571), 96: (0.086, 0.429)}
    for number, (side, area) in enumerate(areas.items(), start=2):
        config.augment[f"student_{number}"] = dict(recipes.MOCO_V2, size=(side, side), crop_area=area)
    return config


SCALES = {
    "tiny": tiny,
    "folder": recipes.folder(tiny),
    "cifar_r18": cifar_r18,
    "imagenet_r50": imagenet_r50,
    "imagenet_r50_multicrop": imagenet_r50_multicrop,
}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("ressl", scale, SCALES)

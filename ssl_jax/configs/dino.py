"""DINO: Caron et al. 2021, arXiv:2104.14294."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    # BatchNorm in the head, the authors' option for ResNets.
    config.method = dict(
        name="dino",
        local_views=2,
        prototypes=256,
        hidden=(256,),
        bottleneck=64,
        head_norm=True,
        decay=0.98,
        center_decay=0.95,
        freeze_epochs=0,
    )
    views = dict(global1=recipes.tiny_view(), global2=recipes.tiny_view(), local=recipes.tiny_local())
    config.augment = views
    config.optimizer.update(lr=8e-3, clip_each=3.0)
    return config


def continued() -> ConfigDict:
    """Given weights trained further, see recipes.continued.

    The learning rate is a tenth of the paper's. The teacher's decay is 0.999 from the start, as in DINOv3's
    high-resolution adaptation. The head is new: its temperature stays at 0.04, and its prototypes move from the first
    step, as there are features to begin with. It has 4096 prototypes, solo-learn's number for sets of this size.
    """
    config = recipes.continued(5e-5, layer_decay=0.9, clip_each=3.0)
    config.method = dict(
        name="dino", local_views=8, norm_last_layer=False, prototypes=4096, decay=0.999, freeze_epochs=0
    )
    config.augment = dict(
        global1={**recipes.DINO_1, "crop_area": (0.25, 1.0)},
        global2={**recipes.DINO_2, "crop_area": (0.25, 1.0)},
        local={**recipes.DINO_LOCAL, **recipes.CONTINUED_LOCAL, "crop_area": (0.05, 0.25)},
    )
    return config


def tiny_vit() -> ConfigDict:
    config = recipes.tiny_vit()
    config.method = dict(
        name="dino", local_views=2, prototypes=256, hidden=(256,), bottleneck=64, decay=0.99, freeze_epochs=0
    )
    config.augment = {**tiny().augment, "local": recipes.tiny_local(size=(14, 14))}
    config.optimizer.update(lr=1e-3, clip_each=3.0, weight_decay=0.04, final_weight_decay=0.4)
    return config


def cifar_r18() -> ConfigDict:
    """solo-learn's settings, without small crops: 89.52 linear."""
    config = recipes.cifar_r18()
    config.method = dict(
        name="dino",
        local_views=0,
        prototypes=4096,
        hidden=(2048, 2048),
        bottleneck=256,
        teacher_temperature=0.07,
        warmup_teacher_temperature=0.07,
        decay=0.9995,
    )
    config.augment = dict(global1=recipes.CIFAR_1, global2=recipes.CIFAR_2)
    config.optimizer = recipes.cifar_lars(config, 0.3, weight_decay=1e-6)
    return config


def imagenet_r50() -> ConfigDict:
    """The authors' command for ResNet-50: 100 epochs on 8 GPUs.

    Their 67.5 kNN and 75.3 linear are for 800 epochs with batches of 4080. None of their commands has the optimizer and
    the decay of that run.
    """
    config = recipes.imagenet("resnet50", batch_size=512, epochs=100)
    config.method = dict(name="dino", local_views=8, decay=0.996)
    config.augment = dict(
        global1={**recipes.DINO_1, "crop_area": (0.14, 1.0)},
        global2={**recipes.DINO_2, "crop_area": (0.14, 1.0)},
        local={**recipes.DINO_LOCAL, "crop_area": (0.05, 0.14)},
    )
    config.optimizer = dict(
        name="sgd",
        exempt=recipes.VECTORS,
        lr=recipes.lr_for(config, 0.03),
        weight_decay=1e-4,
        warmup_steps=recipes.imagenet_steps(10, 512),
        final_lr=1e-6,
        clip_each=3.0,
    )
    return config


def imagenet_vits16() -> ConfigDict:
    """The authors' best run: 74.5 kNN, 77.0 linear.

    With 300 epochs: 73.3 and 76.0. Their default run has 100 epochs, 8 small crops, areas (0.4, 1) and (0.05, 0.4), and
    a teacher's temperature of 0.04: 69.3 and 74.0.
    """
    config = recipes.imagenet("vit_small_patch16_224", batch_size=1024, epochs=800, drop_path=0.1)
    config.method = dict(
        name="dino",
        local_views=10,
        norm_last_layer=False,
        teacher_temperature=0.07,
        warmup_temperature_epochs=30,
        decay=0.996,
    )
    config.augment = dict(
        global1={**recipes.DINO_1, "crop_area": (0.25, 1.0)},
        global2={**recipes.DINO_2, "crop_area": (0.25, 1.0)},
        local={**recipes.DINO_LOCAL, "crop_area": (0.05, 0.25)},
    )
    config.optimizer = dict(
        name="adamw",
        lr=recipes.lr_for(config, 5e-4),
        weight_decay=0.04,
        final_weight_decay=0.4,
        warmup_steps=recipes.imagenet_steps(10, 1024),
        final_lr=1e-6,
        clip_each=3.0,
    )
    return config


SCALES = {
    "tiny": tiny,
    "folder": recipes.folder(tiny),
    "continue": continued,
    "tiny_vit": tiny_vit,
    "cifar_r18": cifar_r18,
    "imagenet_r50": imagenet_r50,
    "imagenet_vits16": imagenet_vits16,
}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("dino", scale, SCALES)

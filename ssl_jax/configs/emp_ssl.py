"""EMP-SSL: Tong et al. 2023, arXiv:2304.03977. The settings are those of the authors' code."""

from typing import Any

from ml_collections import ConfigDict

from ssl_jax import recipes

_PATCH = dict(
    crop_area=(0.25, 0.25), flip=0.5, grayscale=0.2, blur=0.1, solarize=0.1, **recipes.jitter(0.4, 0.4, 0.4, 0.2)
)


def _optimizer() -> dict[str, Any]:
    """main.py's LARSWrapper(SGD(nesterov=True), eta=0.005, clip=True, exclude_bias_n_norm=True)."""
    return dict(
        name="larc",
        lr=0.3,
        weight_decay=1e-4,
        warmup_steps=0,
        final_lr=0.0,
        nesterov=True,
        trust_coefficient=0.005,
        clip=True,
        exempt=recipes.VECTORS,
    )


def tiny() -> ConfigDict:
    """8 patches of 16 pixels have as many pixels as 2.6 whole views."""
    config = recipes.tiny()
    config.method = dict(name="emp_ssl", projector=(256, 256, 64), num_patches=8, eps=0.2, invariance=200.0)
    config.augment.patch = recipes.tiny_view(size=(16, 16), crop_area=(0.25, 0.25), crop_aspect=(1.0, 1.0))
    return config


def cifar_r18() -> ConfigDict:
    """The authors' command: 30 epochs with 20 patches."""
    config = recipes.cifar_r18()
    config.batch_size = 100
    config.epochs = 30
    config.method = dict(name="emp_ssl", projector=(4096, 4096, 1024), num_patches=20, eps=0.2, invariance=200.0)
    config.data.update(mean=(0.5,) * 3, std=(0.5,) * 3)
    config.augment.patch = dict(_PATCH, size=(32, 32), crop_aspect=(1.0, 1.0), blur_kernel=13)
    config.optimizer = _optimizer()
    return config


def imagenet_r18() -> ConfigDict:
    """The authors' augmentation for images of 224 pixels; they train on 100 classes of ImageNet with ResNet-18."""
    config = recipes.imagenet("resnet18", batch_size=100, epochs=30)
    config.method = dict(name="emp_ssl", projector=(4096, 4096, 1024), num_patches=20, eps=0.2, invariance=200.0)
    config.data.update(mean=(0.5,) * 3, std=(0.5,) * 3)
    config.augment.patch = dict(_PATCH, size=(224, 224), interpolation="bicubic")
    config.optimizer = _optimizer()
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "cifar_r18": cifar_r18, "imagenet_r18": imagenet_r18}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("emp_ssl", scale, SCALES)

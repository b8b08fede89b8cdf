"""What the configs of several methods share: data sets at their scales, and augmentations named after papers."""

from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from ssl_jax.config import base_config

VECTORS = ("bias", "offset", "scale")  # what papers call biases and normalization: see optim.kinds
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pick(method: str, scale: str, scales: Mapping[str, Callable[[], ConfigDict]]) -> ConfigDict:
    """The config of one of the method's scales. Raises: ValueError that names them."""
    if scale not in scales:
        raise ValueError(f"{method} has no scale {scale!r}; it has {', '.join(scales)}")
    return scales[scale]()


# Of `folder`, by the numbers of `tiny`: sides of views at 64 in place of 28 pixels, and sides of patches.
SIDES = {28: 64, 16: 32, 14: 32, 30: 66, 32: 64}
PATCHES = {2: 4, 4: 8, 7: 16}
# Options of methods: lengths in pixels; and a queue that is shorter than a set of a thousand images.
METHOD_OPTIONS = {"cell": 8, "patch": 32, "tile": 18, "gap": 4, "queue_size": 512}


def folder(tiny: Callable[[], ConfigDict]) -> Callable[[], ConfigDict]:
    """The scale `folder` of a method with this scale `tiny`: a first look at your own images on a CPU.

    config.data.path says where they are; their channels, type, range, mean and deviation are measured at the start.
    Views have 64 pixels. Where `tiny` distorts brightness and contrast, color is distorted, too: SimCLR's color
    distortion of strength 0.5. It is no paper's setting.
    """

    def get() -> ConfigDict:
        config = tiny()
        config.data.update(name="folder", path="", split="train", image_size=(64, 64))
        config.data.update(channels=0, dtype="", mean=(), std=())
        for view in config.augment.values():
            side = view.size[0]
            view.size = (SIDES.get(side, side),) * 2  # two names may stand for one section, which is changed once
            if view.brightness:
                view.update(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grayscale=0.2)
        if "patch_size" in config.model:
            config.model.patch_size = PATCHES[config.model.patch_size]
        if "image_size" in config.model:
            config.model.image_size = 64
        config.method.update({key: value for key, value in METHOD_OPTIONS.items() if key in config.method})
        return config

    return get


def continued(lr_of_256: float, **optimizer: Any) -> ConfigDict:
    """The scale `continue`: trains given weights (config.begin) further on your own images of 224 pixels.

    Another network than ViT-S is set by config.model.name; its views have sides that patches of 14 and of 16 pixels
    divide. Numbers, with what they follow:

    - 10,000 steps: as many as DINOv2's adaptation to a higher resolution has (arXiv:2304.07193, appendix B.2). Reed et
      al. (arXiv:2103.12718) find that training further converges up to 80 times faster than training from the start.
    - A low learning rate: DINOv3's adaptation (dinov3_vit7b16_high_res_adapt.yaml) has a quarter of its pre-training's.
      A user who trained DINOv2's weights with its settings unchanged saw kNN fall from 80 to 10 percent within 20,000
      images (facebookresearch/dinov2, issue 204). Each method says its own. The warm-up of 500 steps is our choice.
    - A learning rate by layer (optimizer.layer_decay) for ViTs, as in DINOv2, DINOv3 and in fine-tuning (BEiT,
      arXiv:2106.08254): first blocks change the least. Its number is each method's.
    - A weight decay of 0.04, constant, as DINOv3's.
    - compute_dtype float32, so that the first features are those of the weights; set bfloat16 for speed.

    To be filled in: method, augment.

    Args:
      lr_of_256: learning rate of a batch of 256.
      optimizer: what differs of config.optimizer.
    """
    config = base_config()
    config.begin = None
    config.batch_size = 256
    config.steps = 10_000
    config.data.update(name="folder", path="", split="train", image_size=(224, 224))
    config.data.update(channels=0, dtype="", mean=(), std=())
    config.model = dict(name="vit_small_patch16_224")
    config.optimizer = dict(
        name="adamw", lr=lr_for(config, lr_of_256), weight_decay=0.04, warmup_steps=500, final_lr=1e-6
    )
    config.optimizer.update(optimizer)
    return config


# Small crops of multi-crop whose side patches of 14 and of 16 pixels divide: 112, as in DINOv3.
CONTINUED_LOCAL: dict[str, Any] = dict(size=(112, 112))


def tiny() -> ConfigDict:
    """Fashion-MNIST with resnet8, on two CPU cores in a few minutes: for a look, for tests and for comparing methods.

    The values come from measurements there, not from a paper. To be filled in: method; augment, from `tiny_view`.
    """
    config = base_config()
    config.batch_size = 256
    config.steps = 1000
    config.model = dict(name="resnet8", width=1.0, zero_init_residual=False)
    config.optimizer = dict(name="adamw", lr=4e-3, weight_decay=1e-4, warmup_steps=100, final_lr=0.0)
    return config


# 15,000 and 6,000 images of Fashion-MNIST, for methods that cluster the images of an epoch or remember each image: with
# so few images a short run has several epochs.
QUARTER, TENTH = "train[:25%]", "train[:10%]"


def tiny_vit() -> ConfigDict:
    """`tiny` with a small ViT: 16 patches of 7 pixels, 3 blocks of width 96."""
    config = tiny()
    config.model = dict(
        name="vit_tiny_patch16_224", dim=96, depth=3, heads=3, mlp_ratio=2.0, patch_size=7, image_size=28, drop_path=0.0
    )
    config.optimizer.update(lr=2e-3, weight_decay=0.05)
    return config


# Options of a ViT that is trained on its patches alone.
PATCHES_ALONE = dict(class_token=False, pool="norm_mean", positions="sincos")


def tiny_view(**changes: Any) -> dict[str, Any]:
    """No hue, saturation or grayscale: the images are gray. No blur: at 28 pixels it removes what is to be learnt."""
    view = dict(size=(28, 28), crop_area=(0.2, 1.0), flip=0.5, brightness=0.6, contrast=0.6, jitter=0.8)
    return {**view, **changes}


def tiny_local(**changes: Any) -> dict[str, Any]:
    """The small crops of multi-crop for `tiny`."""
    return {**tiny_view(size=(16, 16), crop_area=(0.1, 0.4)), **changes}


def whole_view(side: int) -> dict[str, Any]:
    """The whole image without distortions, for its segments."""
    return dict(size=(side, side), crop_area=(1.0, 1.0), crop_aspect=(0.1, 10.0), flip=0.0, brightness=0.0)


def tiny_stamps(model: str, **model_options: Any) -> ConfigDict:
    """`tiny` in color: 802 clip arts and cut-out photos, in the folder of Debian's package tuxpaint-stamps-default.

    They are in 17 sub-folders; letters and animals are the largest. Three tenths of the images have no color. Their
    background is white.
    """
    config = tiny()
    config.batch_size = 128
    config.data.update(
        name="folder",
        path="/usr/share/tuxpaint/stamps",
        image_size=(32, 32),
        channels=3,
        mean=(0.708, 0.672, 0.634),  # measured at 32 pixels
        std=(0.354, 0.365, 0.390),
    )
    config.model = dict(name=model, **model_options, **data_normalization(config))
    config.augment.view = tiny_view(size=(32, 32), brightness=0.0, contrast=0.0)
    config.optimizer.update(lr=1e-3)  # with the lr of `tiny`, results on images outside the training set soon get worse
    return config


def data_normalization(config: ConfigDict) -> dict[str, Any]:
    """Options of a model that undoes the data's normalization. They follow --config.data.mean and std."""
    return dict(mean=config.data.get_ref("mean"), std=config.data.get_ref("std"))


def cifar_r18() -> ConfigDict:
    """CIFAR-10, ResNet-18 with a 3x3 stem, 1000 epochs of batches of 256: solo-learn's common settings.

    solo-learn's stem pads by 2 pixels, this one by 1. To be filled in: method, augment, optimizer (warm-up
    `CIFAR_WARMUP`).
    """
    config = base_config()
    config.batch_size = 256
    config.epochs = 1000
    config.compute_dtype = "bfloat16"
    config.data.update(
        name="cifar10",
        image_size=(32, 32),
        channels=3,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    )
    config.model = dict(name="resnet18", stem="small", zero_init_residual=False)
    config.update(log_every=100, checkpoint_every=2000, evaluate_every=2000)
    return config


CIFAR_WARMUP = 1950  # 10 epochs of 195 steps


def cifar_lars(config: ConfigDict, lr_of_256: float, *, weight_decay: float) -> dict[str, Any]:
    """solo-learn's optimizer for CIFAR, its LARS with clip_lr: SGD with capped steps."""
    return dict(
        name="larc",
        lr=lr_for(config, lr_of_256),
        weight_decay=weight_decay,
        warmup_steps=CIFAR_WARMUP,
        final_lr=0.0,
        trust_coefficient=0.02,
        clip=True,
        exempt=VECTORS,
    )


def imagenet(model: str, *, batch_size: int, epochs: int, **model_options: Any) -> ConfigDict:
    """ImageNet at 224 pixels. To be filled in: method, augment, optimizer (warm-up from `imagenet_steps`)."""
    config = base_config()
    config.batch_size = batch_size
    config.epochs = epochs
    config.compute_dtype = "bfloat16"
    config.data.update(
        name="imagenet2012",
        test_split="validation",
        image_size=(224, 224),
        channels=3,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        memory_bytes=0,  # crops are taken from the whole images, even if there are few images
        threads=64,
    )
    config.model = dict(name=model, **model_options)
    config.update(log_every=100, checkpoint_every=1000, evaluate_every=5000)
    return config


def imagenet_lars(config: ConfigDict, lr_of_256: float, *, weight_decay: float) -> dict[str, Any]:
    """BYOL's optimizer for ImageNet, which others took over: LARS with 10 epochs of warm-up."""
    return dict(
        name="lars",
        lr=lr_for(config, lr_of_256),
        weight_decay=weight_decay,
        warmup_steps=imagenet_steps(10, config.batch_size),
        final_lr=0.0,
    )


def imagenet_steps(epochs: int, batch_size: int) -> int:
    return epochs * (1_281_167 // batch_size)


def lr_for(config: ConfigDict, lr_of_256: float) -> Any:
    """The learning rate for a batch of 256, scaled linearly with the batch. It follows --config.batch_size.

    Without to_float() the reference would keep the batch size's type, int, and refuse --config.optimizer.lr=0.5.
    """
    return lr_of_256 * config.get_ref("batch_size").to_float() / 256


def in_steps(*epochs: int, of: int, gamma: float = 0.1) -> dict[str, Any]:
    """Multiplies the learning rate by `gamma` at the start of each of these epochs, from 0, in a run of `of` epochs."""
    return dict(schedule="multistep", milestones=tuple(epoch / of for epoch in epochs), gamma=gamma)


# Learning rates that fall in many small steps, as the authors' do.
# BiGAN: constant for 200 epochs, then falling every epoch, to a hundredth after 400 epochs.
BIGAN_STEPS = in_steps(*range(200, 400), of=400, gamma=0.01 ** (1 / 200))
# Counting: multiplied by 0.9 every 10,000 steps, in a run of 105 epochs of batches of 256.
COUNTING_STEPS = in_steps(*range(10_000, imagenet_steps(105, 256), 10_000), of=imagenet_steps(105, 256), gamma=0.9)


# MAE's view on ImageNet, He et al. 2021, arXiv:2111.06377, and the authors' code. Methods built on MAE took it over.
MAE_VIEW = dict(size=(224, 224), crop_area=(0.2, 1.0), flip=0.5, interpolation="bicubic")


def mae_adamw(config: ConfigDict) -> dict[str, Any]:
    """MAE's optimizer on ImageNet, arXiv:2111.06377, and the authors' code. Methods built on MAE took it over."""
    return dict(
        name="adamw",
        lr=lr_for(config, 1.5e-4),
        weight_decay=0.05,
        b2=0.95,
        warmup_steps=imagenet_steps(40, config.batch_size),
        final_lr=0.0,
    )


def beit_adamw(config: ConfigDict, lr_of_256: float) -> dict[str, Any]:
    """The optimizer of BEiT's code on ImageNet, and of those that are built on it: BEiT v2, data2vec."""
    return dict(
        name="adamw",
        lr=lr_for(config, lr_of_256),
        weight_decay=0.05,
        exempt=(*VECTORS, "cls_token", "pos_embed"),
        clip_norm=3.0,
        warmup_steps=imagenet_steps(10, config.batch_size),
        final_lr=1e-5,
    )


def pretext_sgd(config: ConfigDict, lr_of_256: float) -> dict[str, Any]:
    """VISSL's SGD for pretext tasks on ImageNet, 105 epochs of batches of 256, without warm-up.

    VISSL's regularize_bn is False: normalizations are not decayed, other biases are (configs/config/pretrain/rotnet).
    """
    return dict(
        name="sgd",
        lr=lr_for(config, lr_of_256),
        weight_decay=1e-4,
        exempt=("scale", "offset"),
        warmup_steps=0,
        **in_steps(30, 60, 90, 100, of=105),
    )


def colorization_adam(positions: int) -> dict[str, Any]:
    """Adam as in the code of Zhang et al. 2016, arXiv:1603.08511, for views with this many predicted positions.

    The code sums the loss over an image's positions; here the loss is their mean. Adam itself does not depend on this
    factor, but the weight decay does, because it is added to the gradient: the authors' 1e-3 becomes 1e-3 / positions.
    The paper's learning rates are 3e-5, then 1e-5 from 200,000 steps and 3e-6 from 375,000 steps on. Here they are
    3e-5, 9.5e-6 and 3e-6.
    """
    return dict(
        name="adam",
        lr=3e-5,
        b2=0.99,
        weight_decay=1e-3 / positions,
        warmup_steps=0,
        **in_steps(200_000, 375_000, of=500_000, gamma=0.1**0.5),
    )


def larc(config: ConfigDict, lr_of_256: float, *, warmup_steps: int) -> dict[str, Any]:
    """The optimizer of SwAV's authors' code: apex's LARC on all parameters, biases and BatchNorm included.

    The learning rate rises from 0.3 in the warm-up, if there is any, and falls to a thousandth of its peak.
    """
    return dict(
        name="larc",
        lr=lr_for(config, lr_of_256),
        weight_decay=1e-6,
        first_lr=0.3,
        warmup_steps=warmup_steps,
        final_lr=lr_for(config, lr_of_256 / 1000),
    )


def jitter(
    brightness: float, contrast: float, saturation: float, hue: float, probability: float = 0.8
) -> dict[str, Any]:
    """Color jitter by its four strengths."""
    return dict(brightness=brightness, contrast=contrast, saturation=saturation, hue=hue, jitter=probability)


# Augmentations of ImageNet at 224 pixels, as arguments of Augmentation. The interpolation is bilinear if not given.
_IMAGENET = dict(size=(224, 224), flip=0.5, grayscale=0.2)

SIMCLR = dict(_IMAGENET, crop_area=(0.08, 1.0), interpolation="bicubic", **jitter(0.8, 0.8, 0.8, 0.2), blur=0.5)
MOCO_V1 = dict(_IMAGENET, crop_area=(0.2, 1.0), **jitter(0.4, 0.4, 0.4, 0.4, 1.0))
MOCO_V2 = dict(_IMAGENET, crop_area=(0.2, 1.0), **jitter(0.4, 0.4, 0.4, 0.1), blur=0.5)
_BYOL = dict(_IMAGENET, crop_area=(0.08, 1.0), interpolation="bicubic", **jitter(0.4, 0.4, 0.2, 0.1))
BYOL_1 = dict(_BYOL, blur=1.0)
BYOL_2 = dict(_BYOL, blur=0.1, solarize=0.2)
SWAV = dict(_IMAGENET, crop_area=(0.14, 1.0), **jitter(0.8, 0.8, 0.8, 0.2), blur=0.5)
SWAV_LOCAL = dict(SWAV, size=(96, 96), crop_area=(0.05, 0.14))
DINO_1 = dict(BYOL_1, crop_area=(0.4, 1.0))
DINO_2 = dict(BYOL_2, crop_area=(0.4, 1.0))
DINO_LOCAL = dict(_BYOL, size=(96, 96), crop_area=(0.05, 0.4), blur=0.5)

# solo-learn's augmentations of CIFAR at 32 pixels: asymmetric, symmetric, weak.
_CIFAR = dict(size=(32, 32), crop_area=(0.08, 1.0), interpolation="bicubic", flip=0.5, grayscale=0.2)
CIFAR_1 = dict(_CIFAR, **jitter(0.4, 0.4, 0.2, 0.1))
CIFAR_2 = dict(CIFAR_1, solarize=0.2)
CIFAR_SYMMETRIC = dict(_CIFAR, **jitter(0.8, 0.8, 0.8, 0.2), blur=0.5, blur_kernel=3)
CIFAR_WEAK = dict(_CIFAR, **jitter(0.4, 0.4, 0.4, 0.1), blur=0.5, blur_kernel=3)

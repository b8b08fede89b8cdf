"""SimCLR: Chen et al. 2020, arXiv:2002.05709. Scales: tiny, folder, cifar_r18, imagenet_r50."""

from ml_collections import ConfigDict

from ssl_jax.config import base_config

SCALES = ("tiny", "folder", "cifar_r18", "imagenet_r50")


def get_config(scale: str = "tiny") -> ConfigDict:
    if scale not in SCALES:
        raise ValueError(f"simclr has no scale {scale!r}; it has {', '.join(SCALES)}")
    return globals()[scale]()


def tiny() -> ConfigDict:
    """Fashion-MNIST on two CPU cores in some minutes; measured there, not of the paper."""
    config = base_config()
    config.batch_size = 256
    config.steps = 3200
    config.model = dict(name="resnet8", width=1.0, zero_init_residual=False)
    config.method = dict(name="simclr", temperature=0.1, projector=(256, 64))
    # No hue, saturation or grayscale: the images are gray. No blur: at 28 pixels it removes what is to be learnt.
    config.augment.view = dict(size=(28, 28), crop_area=(0.2, 1.0), flip=0.5, brightness=0.6, contrast=0.6, jitter=0.8)
    config.optimizer = dict(name="adamw", lr=4e-3, weight_decay=1e-4, warmup_steps=200, final_lr=0.0)
    return config


def folder() -> ConfigDict:
    """A first look at one's own color images, --config.data.path=DIRECTORY, on a CPU; not of the paper."""
    config = tiny()
    config.data.update(name="folder", image_size=(64, 64), channels=3)
    config.data.update(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))  # ImageNet's
    # Color distortion of strength 0.5.
    config.augment.view.update(size=(64, 64), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grayscale=0.2)
    return config


def cifar_r18() -> ConfigDict:
    """CIFAR-10, ResNet-18, with the authors' settings for CIFAR (the paper's section B.9, their code's command)."""
    config = base_config()
    config.batch_size = 512
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
    config.method = dict(name="simclr", temperature=0.5, projector=(512, 128))
    config.augment.view = dict(
        size=(32, 32),
        crop_area=(0.08, 1.0),
        interpolation="bicubic",
        flip=0.5,
        # Color distortion of strength 0.5; no blur at 32 pixels.
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.1,
        jitter=0.8,
        grayscale=0.2,
    )
    # lr 1.0 a 256 images, weight decay 1e-4; 97 steps an epoch, 10 epochs of warm-up.
    lr = 1.0 * config.get_ref("batch_size").to_float() / 256
    config.optimizer = dict(name="lars", lr_in_momentum=True, lr=lr, weight_decay=1e-4, warmup_steps=970, final_lr=0.0)
    config.update(log_every=100, checkpoint_every=2000, evaluate_every=2000)
    return config


def imagenet_r50() -> ConfigDict:
    """ImageNet, ResNet-50, batch 4096: table 1 of the paper at 800 epochs (69.1 at 800, 69.3 at 1000, linear)."""
    config = base_config()
    config.batch_size = 4096
    config.epochs = 800
    config.compute_dtype = "bfloat16"
    config.data.update(
        name="imagenet2012",
        test_split="validation",
        image_size=(224, 224),
        channels=3,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        memory_bytes=0,  # crops are taken of the whole images, also of few
        threads=64,
    )
    # The last BatchNorm scale of each block starts at 0, as in the authors' code.
    config.model = dict(name="resnet50", zero_init_residual=True)
    config.method = dict(name="simclr", temperature=0.1, projector=(2048, 128))
    config.augment.view = dict(
        size=(224, 224),
        crop_area=(0.08, 1.0),
        interpolation="bicubic",
        flip=0.5,
        # Color distortion of strength 1 (appendix A).
        brightness=0.8,
        contrast=0.8,
        saturation=0.8,
        hue=0.2,
        jitter=0.8,
        grayscale=0.2,
        blur=0.5,
        blur_sigma=(0.1, 2.0),
    )
    # 4.8 at batch 4096 (section 2.3), following --config.batch_size. Without to_float() the reference keeps the
    # batch size's type, and --config.optimizer.lr=0.5 is refused: not an int.
    lr = 0.3 * config.get_ref("batch_size").to_float() / 256
    # 10 epochs of 312 steps.
    config.optimizer = dict(name="lars", lr_in_momentum=True, lr=lr, weight_decay=1e-6, warmup_steps=3120, final_lr=0.0)
    config.update(log_every=100, checkpoint_every=1000, evaluate_every=3100)
    return config

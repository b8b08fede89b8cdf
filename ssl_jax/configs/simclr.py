"""SimCLR: Chen et al. 2020, arXiv:2002.05709; and SimCLRv2: arXiv:2006.10029."""

from typing import Any

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.steps = 3200
    # A temperature of 0.1 gave 0.4 points more by kNN, but 1.3 less by a linear classifier with 10 labels per class.
    config.method = dict(name="simclr", temperature=0.2, projector=(256, 64))
    config.augment.view = recipes.tiny_view()
    config.optimizer.warmup_steps = 200
    return config


def continued() -> ConfigDict:
    """Given weights trained further, see recipes.continued.

    The learning rate is a tenth of MoCo v3's for ViTs, 1.5e-4 for 256 images (arXiv:2104.02057), as SimCLR's paper has
    no ViT; the layer decay is our choice.
    """
    config = recipes.continued(1.5e-5, layer_decay=0.9)
    config.method = dict(name="simclr", temperature=0.1, projector=(2048, 128))  # of imagenet_r50
    config.augment.view = recipes.SIMCLR
    return config


def cifar_r18() -> ConfigDict:
    """The authors' command for CIFAR-10 (their code's README; the paper's section B.9), with ResNet-18: about 91."""
    config = recipes.cifar_r18()
    config.batch_size = 512
    # run.py's num_proj_layers=3; resnet.py starts the last BatchNorm scale of each block at 0.
    config.model.zero_init_residual = True
    config.method = dict(name="simclr", temperature=0.5, projector=(512, 512, 128))
    # Color distortion of strength 0.5; no blur at 32 pixels.
    config.augment.view = {**recipes.CIFAR_SYMMETRIC, **recipes.jitter(0.4, 0.4, 0.4, 0.1), "blur": 0.0}
    # lr 1.0 for 256 images, weight decay 1e-4; a warm-up of 10 epochs with 97 steps each.
    config.optimizer = dict(
        name="lars",
        lr_in_momentum=True,
        lr=recipes.lr_for(config, 1.0),
        weight_decay=1e-4,
        warmup_steps=970,
        final_lr=0.0,
    )
    return config


def imagenet_r50() -> ConfigDict:
    """Table 1 of the paper with ResNet-50 and batch 4096, at 800 epochs: 69.1 linear; 69.3 after 1000 epochs."""
    # The last BatchNorm scale of each block starts at 0, as in the authors' code.
    config = recipes.imagenet("resnet50", batch_size=4096, epochs=800, zero_init_residual=True)
    config.method = dict(name="simclr", temperature=0.1, projector=(2048, 128))
    config.augment.view = recipes.SIMCLR
    # 4.8 at batch 4096 (section 2.3).
    config.optimizer = dict(
        name="lars",
        lr_in_momentum=True,
        lr=recipes.lr_for(config, 0.3),
        weight_decay=1e-6,
        warmup_steps=recipes.imagenet_steps(10, 4096),
        final_lr=0.0,
    )
    return config


def imagenet_r50_v2(model: str = "resnet50", **model_options: Any) -> ConfigDict:
    """SimCLRv2 (arXiv:2006.10029, section 3) with ResNet-50: 71.7 linear; fine-tuned with 1 percent of labels 57.9.

    Its projector has three layers. The first belongs to the kept backbone (model.head_layers=1), because fine-tuning
    with few labels begins after it. The authors' linear classifier is before it. That is the same network with
    --config.model.head_layers=0 --config.method.projector=2048,2048,128. Like the authors' code, it has no memory of
    earlier negatives, which adds about a point in the paper.
    """
    config = recipes.imagenet(
        model, batch_size=4096, epochs=800, zero_init_residual=True, head_layers=1, **model_options
    )
    width = 2048 * int(model_options.get("width", 1))
    config.method = dict(name="simclr", temperature=0.1, projector=(width, 128))
    config.augment.view = recipes.SIMCLR
    config.optimizer = dict(
        name="lars",
        lr_in_momentum=True,
        # 0.1 * sqrt(4096); it follows the batch linearly here, as all our configs.
        lr=recipes.lr_for(config, 0.4),
        weight_decay=1e-4,
        warmup_steps=recipes.imagenet_steps(40, 4096),  # 5 percent of the epochs
        final_lr=0.0,
    )
    return config


def imagenet_r152x3_sk_v2() -> ConfigDict:
    """SimCLRv2's largest network, of 795 million weights: 79.8 linear; fine-tuned with 1 percent of labels 74.9."""
    return imagenet_r50_v2("resnet152", width=3.0, stem="deep", selective_kernels=True)


SCALES = {
    "tiny": tiny,
    "folder": recipes.folder(tiny),
    "continue": continued,
    "cifar_r18": cifar_r18,
    "imagenet_r50": imagenet_r50,
    "imagenet_r50_v2": imagenet_r50_v2,
    "imagenet_r152x3_sk_v2": imagenet_r152x3_sk_v2,
}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("simclr", scale, SCALES)

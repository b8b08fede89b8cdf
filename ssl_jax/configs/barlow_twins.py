"""Barlow Twins: Zbontar et al. 2021, arXiv:2103.03230."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    # There are dim - 1 times as many off-diagonal terms as others. The paper's weight is for 8192 dimensions. With
    # fewer dimensions, a larger weight keeps more of their share.
    config.method = dict(name="barlow_twins", projector=(256, 256), off_diagonal_weight=0.02, loss_scale=0.1)
    config.augment = dict(view1=recipes.tiny_view(), view2=recipes.tiny_view())
    return config


def cifar_r18() -> ConfigDict:
    """solo-learn's settings: 92.10 linear."""
    config = recipes.cifar_r18()
    config.method = dict(name="barlow_twins", projector=(2048, 2048, 2048), off_diagonal_weight=0.0051, loss_scale=0.1)
    config.augment = dict(view1=recipes.CIFAR_1, view2=recipes.CIFAR_2)
    config.optimizer = recipes.cifar_lars(config, 0.3, weight_decay=1e-4)
    return config


def imagenet_r50() -> ConfigDict:
    """The settings of the authors' code: 73.5 linear. The paper has 73.2, with a weight decay of 1.5e-6.

    In the authors' code 16 devices sum the correlation, but no gradient passes through the sum. Then the devices
    average their gradients. The result is 1/16 of the loss's gradient. Where LARS adapts the learning rate, this factor
    has no effect. It matters for parameters that are not adapted, and for weight decay: with the whole gradient, their
    learning rate of 0.0048 becomes 0.0048 / 16, and their decay of 1e-6 becomes 16e-6.
    """
    config = recipes.imagenet("resnet50", batch_size=2048, epochs=1000, zero_init_residual=True)
    config.method = dict(name="barlow_twins", projector=(8192, 8192, 8192), off_diagonal_weight=0.0051, loss_scale=1.0)
    config.augment = dict(view1=recipes.BYOL_1, view2=recipes.BYOL_2)
    config.optimizer = dict(
        name="lars",
        lr=recipes.lr_for(config, 0.2),
        vector_lr_scale=0.0048 / 0.2 / 16,
        weight_decay=16e-6,
        warmup_steps=recipes.imagenet_steps(10, 2048),
        final_lr=recipes.lr_for(config, 0.2 * 0.001),
    )
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "cifar_r18": cifar_r18, "imagenet_r50": imagenet_r50}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("barlow_twins", scale, SCALES)

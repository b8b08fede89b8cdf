"""BiGAN: Donahue, Krähenbühl & Darrell 2016, arXiv:1605.09782."""

from ml_collections import ConfigDict

from ssl_jax import recipes


def tiny() -> ConfigDict:
    config = recipes.tiny()
    config.batch_size = 128
    config.data.update(mean=(0.5,), std=(0.5,))
    config.method = dict(name="bigan", latent=50, generator_width=16, discriminator_width=16, hidden=128)
    config.augment.view = recipes.tiny_view(crop_area=(0.8, 1.0), brightness=0.0, contrast=0.0)
    config.optimizer = dict(name="adam", lr=1e-3, b1=0.5, weight_decay=0.0, warmup_steps=0, final_lr=0.0)
    return config


def cifar_r18() -> ConfigDict:
    """The authors' optimizer, on CIFAR-10."""
    config = recipes.cifar_r18()
    config.batch_size = 128
    config.epochs = 400
    config.data.update(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    config.method = dict(name="bigan", latent=100, generator_width=64, discriminator_width=64, hidden=1024)
    config.augment.view = dict(size=(32, 32), crop_area=(0.8, 1.0), flip=0.5)
    config.optimizer = dict(
        name="adam",
        lr=2e-4,
        b1=0.5,
        weight_decay=5e-5,  # the authors' 2.5e-5 goes with the gradient of half the sum of the losses
        exempt=("scale",),  # --no_decay_gain: offsets are decayed, gains are not
        warmup_steps=0,
        **recipes.BIGAN_STEPS,
    )
    return config


SCALES = {"tiny": tiny, "folder": recipes.folder(tiny), "cifar_r18": cifar_r18}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("bigan", scale, SCALES)

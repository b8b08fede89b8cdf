"""Labels of a source, images of a target. Scales: tiny (about ten minutes on two CPU cores), emoji (as many
steps), smoke (for tests).

The source is Fashion-MNIST in three equal channels. The target is the folder of color images of Debian's
tuxpaint-stamps-default; its labels are those of classes with 30 images or more. At scale emoji both are in color:
Google's drawings of emoji are the source, Twitter's of the same emoji the target, with 1,118 test images.
"""

from ml_collections import ConfigDict

from ssl_jax import recipes
from ssl_jax.studies.base import base_config

SHORT = ("evaluate_every=0", "log_every=50")
SIZE = ("data.image_size=(32,32)", "augment.view.size=(32,32)", "data.channels=3")
STAMPS = recipes.tiny_stamps("resnet8").data
TARGET = (
    *SHORT,
    *SIZE,
    *(f"data.{key}={STAMPS[key]}" for key in ("name", "path", "mean", "std")),
    "batch_size=128",
    "steps=300",
    "optimizer.lr=1e-3",
    "optimizer.warmup_steps=50",
)
# Measured at 32 pixels.
GOOGLE = ("name=emoji_google", "mean=(0.808,0.757,0.717)", "std=(0.281,0.291,0.335)")
TWITTER = ("name=emoji_twitter", "mean=(0.792,0.733,0.695)", "std=(0.283,0.291,0.324)")


def tiny() -> ConfigDict:
    config = base_config("domain_adaptation")
    config.seeds = (0, 1, 2, 3, 4)
    config.source = "supervised:tiny"
    gray = ("data.mean=(0.286,0.286,0.286)", "data.std=(0.353,0.353,0.353)")
    config.source_overrides = (*SHORT, *SIZE, *gray, "steps=300")
    config.target = "simclr:folder"
    config.target_overrides = TARGET
    config.supervised = "supervised:tiny"
    config.supervised_overrides = TARGET
    config.least_images = 25  # classes with fewer images in the target's training split count as unlabelled
    config.draws = 4
    config.linear.labels_per_class = (2, 5, 10, 20)
    config.finetune.update(labels_per_class=(5, 20), steps=60, batch_size=32)
    return config


def emoji() -> ConfigDict:
    config = tiny()
    here = (*SHORT, *SIZE, "batch_size=128", "steps=300", "optimizer.lr=1e-3", "optimizer.warmup_steps=50")
    config.source_overrides = (*here, *(f"data.{key}" for key in GOOGLE))
    config.target = "simclr:tiny"
    config.target_overrides = (*here, *(f"data.{key}" for key in TWITTER))
    config.supervised_overrides = config.target_overrides
    config.least_images = 0
    return config


def smoke() -> ConfigDict:
    config = tiny()
    few = ("steps=2", "batch_size=16", "model.width=0.25", "model.stages=(1,)")
    for name in ("source", "target", "supervised"):
        config[f"{name}_overrides"] = (*config[f"{name}_overrides"], *few)
    config.source_overrides = (*config.source_overrides, "data.split=train[:1%]", "data.test_split=test[:5%]")
    config.update(seeds=(0,), draws=1)
    config.linear.labels_per_class = (2,)
    config.finetune.update(labels_per_class=(4,), steps=2, batch_size=16, learning_rates=(1e-3,))
    return config


SCALES = {"tiny": tiny, "emoji": emoji, "smoke": smoke}


def get_config(scale: str = "tiny") -> ConfigDict:
    return recipes.pick("domain_adaptation", scale, SCALES)

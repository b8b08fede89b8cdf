"""The scale `folder` of every method: it takes what images of its user are, and fits together at its size."""

import pytest

from ssl_jax import config as configs
from ssl_jax.configs import NAMES
from ssl_jax.training import build
from ssl_jax.training.measuring import is_open, without_hue
from tests.methods.teachers import with_teacher

OF_COLORS = ("colorization", "split_brain")  # methods of red, green and blue


def made(name, channels):
    config = configs.get_config(f"{name}:folder")
    assert is_open(config.data)
    config.data.update(channels=channels, dtype="uint16", value_range=(0.0, 4095.0))
    config.data.update(mean=(0.5,) * channels, std=(0.25,) * channels)
    without_hue(config)
    parsed = configs.parse(with_teacher(config))
    return parsed, build.training(parsed, build.schedule(parsed, num_images=1000, num_classes=5))


@pytest.mark.parametrize("name", NAMES)
def test_every_method_takes_images_of_five_channels_or_says_why_not(name):
    if name in OF_COLORS:
        with pytest.raises(configs.ConfigError, match="red, green and blue"):
            made(name, 5)
        return
    config, training = made(name, 5)
    assert (config.data.name, config.data.path, config.data.split) == ("folder", "", "train")
    # The views of emp_ssl are patches of the image.
    assert max(augmentation.size for augmentation in training.augmentations) >= (
        (32, 32) if name == "emp_ssl" else (64, 64)
    )
    if "patch_size" in config.model:
        sides = {side for augmentation in training.augmentations for side in augmentation.size}
        assert all(side % config.model["patch_size"] == 0 for side in sides)
        assert config.model.get("image_size", 64) == 64  # a ConvNeXt is made for no size


@pytest.mark.parametrize("name", OF_COLORS)
def test_methods_of_color_take_three_channels(name):
    assert made(name, 3)[0].data.channels == 3


@pytest.mark.parametrize("channels, changes", [(3, {}), (1, {"hue": 0.0}), (5, {"hue": 0.0, "channel_mix": 0.1})])
def test_hue_gives_way_where_there_are_no_colors(channels, changes):
    config = configs.get_config("simclr:folder")
    config.data.channels = channels
    before = dict(config.augment.view)
    assert without_hue(config) == bool(changes)
    assert dict(config.augment.view) == before | changes

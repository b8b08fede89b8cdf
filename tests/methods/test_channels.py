"""Every method on images of five channels, with the views of satellite images: its network, loss and pictures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import config
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.training import build
from tests.methods import smaller
from tests.methods.teachers import with_teacher

CHANNELS, BATCH = 5, 64
SMALLER = {"model": smaller.MODEL, "method": smaller.METHOD}
# Those that look at pixels; the others leave them to the backbone.
LOOK_AT_PIXELS = (
    *("aim", "beit_kmeans", "bigan", "cmc", "counting", "cpc", "dcgan", "denoising", "inpainting", "jigsaw", "mae"),
    *("maskfeat", "pirl", "relative_patch", "simclr", "simmim", "supervised", "vae"),
)
# Method -> the sentence that refuses it.
REFUSED = {
    "colorization": r"computes lightness from red, green and blue.*data\.channels=3",
    "split_brain": r'parts="lab" splits red, green and blue.*use parts="bands" with the method cmc',
    "rotation": r"hide; use --config\.augment\.view\.quarter_turns=0\.0 --config\.augment\.view\.flip_vertical=0\.0",
}


def settings(name, channels=CHANNELS, kind="satellite", scale="tiny"):
    found = config.get_config(f"{name}:{scale}:{kind}" if kind else f"{name}:{scale}").unlock()
    for section, values in SMALLER.items():
        found[section].update({key: value for key, value in values.items() if key in found[section]})
    if "resnet" in found.model.name and name != "w_mse":  # whitens more dimensions than a shorter network has
        found.model.stages = (1,)
    found.batch_size = 128 if name == "w_mse" else BATCH
    found.data.update(channels=channels, dtype="uint8", mean=(0.4,) * channels, std=(0.3,) * channels)
    return with_teacher(found)


def training(found):
    run = Schedule(batch_size=found.batch_size, steps=5, steps_per_epoch=3, num_images=1024, num_classes=10)
    return build.training(config.parse(found), run)


def each_method():
    marks = {name: () if name in LOOK_AT_PIXELS else pytest.mark.slow for name in METHODS if name not in REFUSED}
    return [pytest.param(name, marks=mark) for name, mark in marks.items()]


@pytest.mark.parametrize("name", each_method())
def test_every_other_method_takes_any_number_of_channels(name):
    found = settings(name)
    made, size = training(found), (found.batch_size, *found.data.image_size, CHANNELS)
    method = made.method

    def run(images):
        params, state = method.init(jax.random.key(0), jnp.zeros((1, *made.augmentations[0].size, CHANNELS)))
        state = jax.tree.map(jnp.asarray, state)  # a teacher's weights are NumPy's until a run begins
        numbers = jnp.arange(found.batch_size, dtype=jnp.int32)
        batch = made.views(jax.random.key(1), {"image": images, "index": numbers, "label": numbers % 10})
        output = method.loss(params, state, batch, jax.random.key(2))
        return output.loss, batch["views"][0], method.pictures(params, state, batch, jax.random.key(3))

    loss, view, pictures = jax.eval_shape(run, jax.ShapeDtypeStruct(size, np.uint8))
    assert loss.shape == () and view.shape[-1] == CHANNELS
    assert all(picture.shape[-1] == CHANNELS for picture in pictures.values())


@pytest.mark.parametrize("name", REFUSED)
def test_a_method_of_color_or_turns_is_refused_before_any_work(name):
    with pytest.raises(config.ConfigError, match=REFUSED[name]):
        training(settings(name))


def test_rotation_takes_any_number_of_channels_where_views_stand_upright():
    training(settings("rotation", kind=""))


@pytest.mark.parametrize(
    "channels, remedy",
    [
        (1, r"--config\.augment\.view\.hue=0\.0, or views"),
        (5, r"--config\.augment\.view\.hue=0\.0 --config\.augment\.view\.channel_mix=0\.1, or views .*satellite"),
    ],
)
def test_hue_of_other_than_three_channels_is_refused_with_the_whole_remedy(channels, remedy):
    found = settings("simclr", channels, kind="", scale="folder")
    with pytest.raises(config.ConfigError, match=remedy):
        training(found)
    found.augment.view.update(hue=0.0, channel_mix=0.1)
    training(found)

import functools

import jax
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.config import ConfigError, parse
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.methods.simmim import SimMIM
from ssl_jax.training import augmenting, build
from tests.methods import drawn
from tests.methods.test_every_method import load

RUN = Schedule(batch_size=4, steps=100, steps_per_epoch=10, num_images=60)
RNG = np.random.default_rng(0)
MASK = RNG.random((4, 16)) < 0.6
X = RNG.normal(size=(4, 16, 16, 1)).astype(np.float32)


SWIN_MASK = RNG.random((4, 6)) < 0.5


def make_swin(**options):
    options = dict(base_width=8, head_width=4, stages=(1, 1), window=2, **options)
    return METHODS["simmim"](models.create("swin_tiny_patch4_window7_224", **options), RUN)


def make():
    vit = dict(dim=16, depth=1, heads=2, patch_size=4, image_size=16, pool="norm_mean")
    return METHODS["simmim"](models.create("vit_tiny_patch16_224", **vit), RUN)


@functools.cache
def step():
    """images -> (prediction, loss, metrics)"""
    method = make()
    params, state = drawn.draw(method, X[:1])

    @jax.jit
    def run(params, x, mask):
        output = method.loss(params, state, {"views": (x,), "masks": (mask,)}, jax.random.key(2))
        return method.predict(params, x, mask, None, None)[0], output.loss, output.metrics

    return lambda x: jax.device_get(run(params, x, MASK))


def test_hidden_pixels_are_not_seen():
    prediction, *_ = step()(X)
    hidden, other = MASK.reshape(4, 4, 4).repeat(4, axis=1).repeat(4, axis=2)[..., None], np.float32(100.0)
    np.testing.assert_allclose(step()(np.where(hidden, other, X))[0], prediction, atol=1e-5)
    assert np.abs(step()(np.where(hidden, X, other))[0] - prediction).max() > 1e-2


def test_a_swin_does_not_see_hidden_squares_and_predicts_the_pixels_of_each():
    method, x = make_swin(), RNG.normal(size=(4, 16, 24, 1)).astype(np.float32)  # 2 x 3 squares of 8 pixels
    params, state = drawn.draw(method, x[:1])
    assert params["mask_token"].shape == (8,)

    @jax.jit
    def step(params, mask, x):
        output = method.loss(params, state, {"views": (x,), "masks": (mask,)}, jax.random.key(2))
        return method.predict(params, x, mask, None, None)[0], output.loss

    run = functools.partial(step, params, SWIN_MASK)
    prediction, loss = jax.device_get(run(x))
    squares = x.reshape(4, 2, 8, 3, 8).swapaxes(2, 3).reshape(4, 6, 64)
    np.testing.assert_allclose(loss, np.mean(np.abs(prediction - squares)[SWIN_MASK]), rtol=1e-5)
    hidden, other = SWIN_MASK.reshape(4, 2, 3).repeat(8, axis=1).repeat(8, axis=2)[..., None], np.float32(100.0)
    np.testing.assert_allclose(run(np.where(hidden, other, x))[0], prediction, atol=1e-5)
    assert np.abs(run(np.where(hidden, x, other))[0] - prediction).max() > 1e-2


def test_a_swins_masks_hide_squares_of_its_last_map():
    config = load("simmim", "tiny").unlock()
    swin = dict(name="swin_tiny_patch4_window7_224", base_width=32, stages=(1, 1), patch_size=7, image_size=28)
    config.model = swin
    config = parse(config)
    method = build.method(config, RUN)
    (mask,) = augmenting.masks(config, method, augmenting.augmentations(config, method.views))
    assert mask.grid((28, 28)) == (2, 2)


def test_loss_is_the_absolute_error_of_the_hidden_pixels():
    prediction, loss, metrics = step()(X)
    patches = X.reshape(4, 4, 4, 4, 4).swapaxes(2, 3).reshape(4, 16, 16).astype(np.float64)
    np.testing.assert_allclose(loss, np.mean(np.abs(prediction - patches)[MASK]), rtol=1e-5)
    np.testing.assert_allclose(metrics["mean_loss"], np.mean(np.abs(patches)[MASK]), rtol=1e-5)


def test_the_backbone_begins_as_beits():
    params, _ = jax.device_get(make().init(jax.random.key(1), X[:1]))
    for kernel in (params["backbone"]["patch_embed"]["proj"]["kernel"], params["backbone"]["cls_token"]):
        assert 0.015 < np.abs(kernel).max() <= 0.02
    assert np.abs(params["backbone"]["blocks_0"]["mlp"]["fc2"]["kernel"]).max() <= 0.02 / np.sqrt(2)
    assert np.abs(params["mask_token"]).max() <= 0.02


def test_a_swin_begins_as_for_other_methods():
    method = make_swin()
    images = np.zeros((1, 16, 24, 1), np.float32)
    params, _ = jax.device_get(method.init(jax.random.key(1), images))
    kernel = params["backbone"]["layers_1"]["blocks_0"]["mlp"]["fc1"]["kernel"]
    np.testing.assert_allclose(kernel.std(), 0.02, rtol=0.1)  # BEiT's are cut off, and their deviation is 0.011


@pytest.mark.parametrize(
    "scale, pixels, hidden",
    [
        ("imagenet_vitb16", 224, 4 * 30),  # of 49 squares of 4 patches
        ("imagenet_swinb", 192, 22),  # of 36
    ],
)
def test_the_share_of_hidden_squares_is_rounded_up_as_by_the_authors(scale, pixels, hidden):
    config = parse(load("simmim", scale))
    method = build.method(config, RUN)
    (mask,) = augmenting.masks(config, method, augmenting.augmentations(config, method.views))
    assert mask.most((pixels, pixels)) == hidden


def test_the_papers_swin_has_windows_of_a_quarter_of_its_maps_and_whole_small_ones():
    method = build.method(parse(load("simmim", "imagenet_swinb")), RUN)
    images = jax.ShapeDtypeStruct((1, 192, 192, 3), np.float32)
    params, _ = jax.eval_shape(method.init, jax.random.key(0), images)
    assert method.backbone.windows == [((6, 6), (3, 3))] * 3 + [((6, 6), (0, 0))]  # maps of 48, 24, 12 and 6
    assert params["head"]["kernel"].shape == (1024, 32 * 32 * 3) and params["mask_token"].shape == (128,)


@pytest.mark.parametrize("name", ["simmim", "maskfeat", "beit_kmeans", "data2vec"])
def test_features_are_the_mean_of_the_patches_as_no_loss_trains_the_class_token(name):
    for scale in ("tiny", "imagenet_vitb16"):
        config = load(name, scale)
        assert build.model_options(parse(config))["pool"] == "norm_mean"  # which is written beside the weights
        config.model.pool = "cls"
        with pytest.raises(ConfigError, match=r"use model\.pool=\"norm_mean\", got 'cls'"):
            build.method(parse(config), Schedule(batch_size=256, steps=100, steps_per_epoch=10, num_images=2560))


def test_a_resnet_is_refused():
    with pytest.raises(ValueError, match="use a ViT"):
        SimMIM(models.create("resnet8"), RUN)

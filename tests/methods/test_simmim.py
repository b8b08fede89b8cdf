import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import build, losses, models
from ssl_jax.config import ConfigError
from ssl_jax.methods import METHODS, Run
from ssl_jax.methods.simmim import SimMIM
from ssl_jax.models.patches import patchify, unpatchify
from tests.methods.test_every_method import load

RUN = Run(batch_size=4, steps=100, steps_per_epoch=10, num_images=60)
MASK = np.random.default_rng(0).random((4, 16)) < 0.6


def setup():
    vit = dict(dim=16, depth=1, heads=2, patch_size=4, image_size=16, pool="norm_mean")
    backbone = models.create("vit_tiny_patch16_224", **vit)
    method = METHODS["simmim"](backbone, RUN)
    x = jax.random.normal(jax.random.key(0), (4, 16, 16, 1))
    return method, x, *method.init(jax.random.key(1), x[:1])


def test_hidden_pixels_are_not_seen():
    method, x, params, _ = setup()
    hidden = unpatchify(jnp.broadcast_to(jnp.asarray(MASK)[..., None], (4, 16, 16)), (16, 16), 4)
    predict = lambda x: method.predict(params, x, jnp.asarray(MASK), None, None)[0]  # noqa: E731
    np.testing.assert_allclose(predict(jnp.where(hidden, 100.0, x)), predict(x), atol=1e-5)
    assert np.abs(np.asarray(predict(jnp.where(hidden, x, 100.0)) - predict(x))).max() > 1e-2


def test_loss_is_the_absolute_error_of_the_hidden_pixels():
    method, x, params, state = setup()
    batch = {"views": (x,), "masks": (jnp.asarray(MASK),)}
    loss, (_, metrics) = method.loss(params, state, batch, jax.random.key(2))
    prediction, _ = method.predict(params, x, jnp.asarray(MASK), None, None)
    patches = patchify(x, 4)
    np.testing.assert_allclose(loss, np.mean(np.abs(prediction - patches)[MASK]), rtol=1e-5)
    np.testing.assert_allclose(metrics["mean_loss"], np.mean(np.abs(patches)[MASK]), rtol=1e-5)
    assert losses.masked_l1(prediction, patches, jnp.asarray(MASK)) == loss


def test_the_backbone_begins_as_beits():
    _, _, params, _ = setup()
    for kernel in (params["backbone"]["patch_embed"]["proj"]["kernel"], params["backbone"]["cls_token"]):
        assert 0.015 < np.abs(kernel).max() <= 0.02
    assert np.abs(params["backbone"]["blocks_0"]["mlp"]["fc2"]["kernel"]).max() <= 0.02 / np.sqrt(2)
    assert np.abs(params["mask_token"]).max() <= 0.02


def test_of_49_squares_30_are_hidden_as_the_authors_round_up():
    config = load("simmim", "imagenet_vitb16")
    method = build.method(config, RUN)
    (mask,) = build.masks(config, method)
    assert mask.most((224, 224)) == 4 * 30  # patches


@pytest.mark.parametrize("name", ["simmim", "maskfeat", "beit_kmeans", "data2vec"])
def test_features_are_the_mean_of_the_patches_as_no_loss_trains_the_class_token(name):
    for scale in ("tiny", "imagenet_vitb16"):
        config = load(name, scale)
        assert build.model_options(config)["pool"] == "norm_mean"  # which is written beside the weights
        config.model.pool = "cls"
        with pytest.raises(ConfigError, match=r"use model\.pool=\"norm_mean\", got 'cls'"):
            build.method(config, Run(batch_size=256, steps=100, steps_per_epoch=10, num_images=2560))


def test_a_resnet_is_refused():
    with pytest.raises(ValueError, match="use a vision transformer"):
        SimMIM(models.create("resnet8"), RUN)

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Run
from ssl_jax.methods.aim import draw_prefixes, prefix_attention
from ssl_jax.models.patches import patchify, unpatchify

RUN = Run(batch_size=4, steps=100, steps_per_epoch=10, num_images=60)
PATCHES = 16
VIT = dict(dim=16, depth=2, heads=2, patch_size=4, image_size=16, positions="sincos")


@functools.cache
def setup():
    backbone = models.create("vit_tiny_patch16_224", **VIT, class_token=False, pool="norm_mean")
    method = METHODS["aim"](backbone, RUN, head_depth=2)
    x = 3.0 + jax.random.normal(jax.random.key(0), (4, 16, 16, 1))
    return method, {"views": (x,), "index": jnp.arange(4)}, *method.init(jax.random.key(1), x[:1])


def predict(params, x, rng):
    method, batch, *_ = setup()
    return method.predict(params, x, batch["index"], rng, None)


def test_the_prefix_sees_all_of_itself_and_later_patches_what_came_before():
    for prefix, attend in zip((1, 3), np.asarray(prefix_attention(jnp.array([1, 3]), 4)), strict=True):
        expected = [[key <= query or key < prefix for key in range(4)] for query in range(4)]
        np.testing.assert_array_equal(attend, expected)


def test_prefixes_are_of_one_to_all_but_one_patches_each_as_likely():
    prefixes = draw_prefixes(jax.random.key(3), jnp.arange(15_000), PATCHES)
    counts = np.bincount(prefixes, minlength=PATCHES + 1)
    assert counts[0] == counts[PATCHES] == 0
    # 1000 of each, with a deviation of 31.
    assert counts[1:PATCHES].min() > 850 and counts[1:PATCHES].max() < 1150


def test_no_prediction_that_counts_depends_on_what_it_predicts_or_what_comes_later():
    _, batch, params, _ = setup()
    (x,), rng = batch["views"], jax.random.key(3)
    run = jax.jit(predict)
    prediction, _, predicted = run(params, x, rng)
    assert 0 < np.asarray(predicted).mean() < 1
    patches = patchify(x, 4)
    for patch in (4, 9, PATCHES - 1):
        # Patch `patch` and all after it changed; prediction number j is of patch j + 1.
        changed = jnp.where((jnp.arange(PATCHES) >= patch)[:, None], 100.0 * patches + 7.0, patches)
        other, *_ = run(params, unpatchify(changed, (16, 16), 4), rng)
        differs = np.any(np.abs(np.asarray(other - prediction)) > 1e-4, axis=-1)
        target = np.arange(1, PATCHES)
        assert not np.any(differs & np.asarray(predicted)[:, 1:] & (target <= patch))
        if patch < PATCHES - 1:
            assert np.all(differs[:, target > patch])


def test_loss_is_that_of_the_next_patches_after_the_prefix():
    method, batch, params, state = setup()
    (x,), rng = batch["views"], jax.random.key(3)
    loss, (_, metrics) = jax.jit(method.loss)(params, state, batch, rng)
    prediction, _, predicted = jax.jit(predict)(params, x, rng)
    target = np.asarray(patchify(x, 4), np.float64)
    target = (target - target.mean(-1, keepdims=True)) / np.sqrt(target.var(-1, ddof=1, keepdims=True) + 1e-6)
    errors = [
        np.mean((prediction[image, patch - 1] - target[image, patch]) ** 2)
        for image, patch in np.argwhere(np.asarray(predicted))
    ]
    np.testing.assert_allclose(loss, np.mean(errors), rtol=1e-4)
    np.testing.assert_allclose(metrics["patch_mean_loss"], 15 / 16, rtol=1e-4)  # of a unit, unbiased variance


def test_every_parameter_is_trained():
    method, batch, params, state = setup()
    gradient = jax.jit(jax.grad(lambda params: method.loss(params, state, batch, jax.random.key(3))[0]))(params)
    norms = {jax.tree_util.keystr(path): np.abs(g).max() for path, g in jax.tree_util.tree_leaves_with_path(gradient)}
    assert min(norms.values()) > 0, min(norms, key=norms.get)


def test_features_see_all_patches():
    method, batch, params, state = setup()
    (x,) = batch["views"]
    tokens = method.backbone.apply({"params": params["backbone"]}, x, tokens=True, attend=jnp.ones((1, 1, 1), bool))
    np.testing.assert_allclose(method.features(params, state, x), jnp.mean(tokens, axis=1), rtol=1e-4, atol=1e-5)


def test_the_picture_keeps_the_prefix_and_undoes_the_normalization():
    method, batch, params, state = setup()
    made = method.pictures(params, state, batch, jax.random.key(3))
    *_, predicted = predict(params, batch["views"][0], jax.random.key(3))
    image, prefix, drawn = (np.asarray(patchify(made[name], 4)) for name in ("image", "prefix", "next patches"))
    predicted = np.asarray(predicted)
    np.testing.assert_allclose(drawn[~predicted], image[~predicted], rtol=1e-6)
    assert np.all(prefix[predicted] == 0.0)
    # Next to nothing is predicted by an untrained network, so each patch is near its own mean.
    assert np.abs(drawn - image.mean(-1, keepdims=True))[predicted].mean() < 0.6


def test_a_class_token_is_refused():
    with pytest.raises(ValueError, match=r"model\.class_token=False and model\.pool=\"norm_mean\", got True, 'cls'"):
        METHODS["aim"](models.create("vit_tiny_patch16_224", **VIT), RUN)

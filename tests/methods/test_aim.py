import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.methods.aim import draw_prefixes, prefix_attention
from tests.methods import drawn

RUN = Schedule(batch_size=4, steps=100, steps_per_epoch=10, num_images=60)
PATCHES = 16
VIT = dict(dim=16, depth=1, heads=2, patch_size=4, image_size=16, positions="sincos")
X = (3.0 + np.random.default_rng(0).normal(size=(4, 16, 16, 1))).astype(np.float32)
BATCH = {"views": (X,), "index": np.arange(4)}
KEY = 3


V2 = dict(norm_kind="rms", bias=False, qkv_bias=False, mlp="swiglu")


@functools.cache
def predictor(v2=False):
    """(method, params, state, predict: images -> (prediction, which patches are predicted))"""
    backbone = models.create("vit_tiny_patch16_224", **VIT | (V2 if v2 else {}), class_token=False, pool="norm_mean")
    options = dict(causal_head=True, head_heads=2, head_depth=1) if v2 else dict(head_depth=2)
    method = METHODS["aim"](backbone, RUN, **options)
    params, state = drawn.draw(method, X[:1])
    predict = jax.jit(lambda params, x, rng: method.predict(params, x, jnp.arange(4), rng, None)[::2])
    return method, params, state, lambda x: jax.device_get(predict(params, x, jax.random.key(KEY)))


@functools.cache
def step():
    """What is made of BATCH in a step and beside it."""
    method, params, state, _ = predictor()

    @jax.jit
    def run(params, batch, rng):
        (x,) = batch["views"]

        def loss(params):
            output = method.loss(params, state, batch, rng)
            return output.loss, output

        all_see_all = jnp.ones((1, 1, 1), bool)
        return {
            "loss": jax.value_and_grad(loss, has_aux=True)(params),
            "pictures": method.pictures(params, state, batch, rng),
            "features": method.features(params, state, x),
            "tokens": method.backbone.apply({"params": params["backbone"]}, x, tokens=True, attend=all_see_all),
        }

    return jax.device_get(run(params, BATCH, jax.random.key(KEY)))


def patchify(x):
    """[batch, patches, pixels]"""
    return x.reshape(4, 4, 4, 4, 4).swapaxes(2, 3).reshape(4, 16, 16)


def unpatchify(patches):
    return patches.reshape(4, 4, 4, 4, 4).swapaxes(2, 3).reshape(4, 16, 16, 1)


def test_the_prefix_sees_all_of_itself_and_later_patches_what_came_before():
    attention = np.asarray(jax.jit(prefix_attention, static_argnums=1)(np.array([1, 3]), 4))
    for prefix, attend in zip((1, 3), attention, strict=True):
        expected = [[key <= query or key < prefix for key in range(4)] for query in range(4)]
        np.testing.assert_array_equal(attend, expected)


def test_prefixes_are_of_one_to_all_but_one_patches_each_as_likely():
    prefixes = jax.jit(draw_prefixes, static_argnums=2)(jax.random.key(3), np.arange(15_000), PATCHES)
    counts = np.bincount(prefixes, minlength=PATCHES + 1)
    assert counts[0] == counts[PATCHES] == 0
    # 1000 of each, with a deviation of 31.
    assert counts[1:PATCHES].min() > 850 and counts[1:PATCHES].max() < 1150


@pytest.mark.parametrize("v2", [False, True])
def test_no_prediction_that_counts_depends_on_what_it_predicts_or_what_comes_later(v2):
    predict = predictor(v2)[-1]
    prediction, predicted = predict(X)
    assert 0 < predicted.mean() < 1
    patches = patchify(X)
    for patch in (4, 9, PATCHES - 1):
        # Patch `patch` and all after it changed; prediction number j is of patch j + 1.
        changed = np.where((np.arange(PATCHES) >= patch)[:, None], np.float32(7.0) - 2 * patches, patches)
        other, _ = predict(unpatchify(changed))
        differs = np.any(np.abs(other - prediction) > 1e-4, axis=-1)
        target = np.arange(1, PATCHES)
        assert not np.any(differs & predicted[:, 1:] & (target <= patch))
        if patch < PATCHES - 1:
            assert np.all(differs[:, target > patch])


def normalized():
    """(the patches, their means, their deviations), in float64"""
    patches = patchify(X).astype(np.float64)
    mean, deviation = patches.mean(-1, keepdims=True), np.sqrt(patches.var(-1, ddof=1, keepdims=True) + 1e-6)
    return (patches - mean) / deviation, mean, deviation


def test_loss_is_that_of_the_next_patches_after_the_prefix():
    (loss, output), _ = step()["loss"]
    prediction, predicted = predictor()[-1](X)
    target, *_ = normalized()
    errors = [
        np.mean((prediction[image, patch - 1] - target[image, patch]) ** 2) for image, patch in np.argwhere(predicted)
    ]
    np.testing.assert_allclose(loss, np.mean(errors), rtol=1e-4)
    np.testing.assert_allclose(output.metrics["patch_mean_loss"], 15 / 16, rtol=1e-4)  # of a unit, unbiased variance


def test_every_parameter_is_trained():
    _, gradient = step()["loss"]
    norms = {jax.tree_util.keystr(path): np.abs(g).max() for path, g in jax.tree_util.tree_leaves_with_path(gradient)}
    assert min(norms.values()) > 0, min(norms, key=norms.get)


def test_a_causal_head_sees_the_tokens_before_and_a_plain_one_its_own():
    tokens = np.random.default_rng(1).normal(size=(1, PATCHES, 16)).astype(np.float32)
    changed = tokens.copy()
    changed[:, 5, 0] += 1.0  # not all entries alike, which LayerNorm does not see
    for v2, seen in ((True, np.arange(PATCHES) >= 5), (False, np.arange(PATCHES) == 5)):
        method, params, *_ = predictor(v2)
        head = method.head(jnp.asarray(X))
        apply = jax.jit(lambda params, tokens, head=head: head.apply({"params": params}, tokens))
        one, other = (np.asarray(apply(params["head"], x))[0] for x in (tokens, changed))
        np.testing.assert_array_equal(np.abs(one - other).max(axis=-1) > 1e-6, seen)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(predictor(True)[1]["head"])]
    assert [name for name in names if "bias" in name] == ["['pixels']['bias']"]


def test_features_see_all_patches():
    np.testing.assert_allclose(step()["features"], step()["tokens"].mean(axis=1), rtol=1e-4, atol=1e-5)


def test_the_picture_keeps_the_prefix_and_undoes_the_normalization():
    made = step()["pictures"]
    prediction, predicted = predictor()[-1](X)
    _, mean, deviation = normalized()
    image, prefix, drawn_ = (patchify(made[name]) for name in ("image", "prefix", "next patches"))
    np.testing.assert_array_equal(image, patchify(X))
    np.testing.assert_allclose(drawn_[~predicted], image[~predicted], rtol=1e-6)
    assert np.all(prefix[predicted] == 0.0) and np.all(prefix[~predicted] == image[~predicted])
    expected = np.concatenate([np.zeros((4, 1, 16)), prediction], axis=1) * deviation + mean
    np.testing.assert_allclose(drawn_[predicted], expected[predicted], rtol=1e-4, atol=1e-4)


def test_heads_that_do_not_divide_the_width_of_a_causal_head_are_refused():
    with pytest.raises(ValueError, match="head_heads=3 does not divide the width 16 of the head"):
        METHODS["aim"](predictor()[0].backbone, RUN, causal_head=True, head_heads=3)


def test_a_class_token_is_refused():
    with pytest.raises(ValueError, match=r"model\.class_token=False and model\.pool=\"norm_mean\", got True, 'cls'"):
        METHODS["aim"](models.create("vit_tiny_patch16_224", **VIT), RUN)

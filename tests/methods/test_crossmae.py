import functools
import math

import jax
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.methods.crossmae import CrossDecoder, hidden
from ssl_jax.methods.toolkit import masking
from tests.methods import drawn

RUN = Schedule(batch_size=4, steps=100, steps_per_epoch=10, num_images=60)
MASK = np.array([[1, 1, 0, 1] * 4, [0, 1, 1, 1] * 4, [1, 1, 1, 0] * 4, [1, 0, 1, 1] * 4], bool)  # 12 of 16 each
X = (5.0 + 2.0 * np.random.default_rng(0).normal(size=(4, 16, 16, 1))).astype(np.float32)
BATCH = {"views": (X,), "masks": (MASK,), "index": np.arange(4, dtype=np.int32)}


def make(**options):
    backbone = models.create(
        "vit_tiny_patch16_224", dim=16, depth=2, heads=2, patch_size=4, image_size=16, positions="sincos"
    )
    return METHODS["crossmae"](backbone, RUN, decoder_dim=16, decoder_depth=2, decoder_heads=2, **options)


def patchify(x):
    """[batch, patches, pixels]"""
    return np.reshape(x, (4, 4, 4, 4, 4)).swapaxes(2, 3).reshape(4, 16, 16)


@functools.cache
def step():
    """(params, predictions of all hidden patches in their order, {prediction_ratio: output}, pictures, maps)"""
    params, state = drawn.draw(make(), X[:1])

    @jax.jit
    def run(params, batch, rng):
        (x,), (mask,) = batch["views"], batch["masks"]
        asked = hidden(mask, 0.75, jax.numpy.zeros(mask.shape))
        outputs = {ratio: make(prediction_ratio=ratio).loss(params, state, batch, rng) for ratio in (0.75, 0.25)}
        predict = [make().predict(params, images, mask, asked, rng, None)[0] for images in (x, other(x), seen(x))]
        maps = make().backbone.apply(
            {"params": params["backbone"]}, x, last_blocks=3, keep=masking.unmasked(mask, 0.75)
        )
        return predict, outputs, make().pictures(params, state, batch, rng), maps

    return params, *jax.device_get(run(params, BATCH, jax.random.key(2)))


def pixels():
    return MASK.reshape(4, 4, 4).repeat(4, axis=1).repeat(4, axis=2)[..., None]


def other(x):
    """The hidden pixels changed."""
    return jax.numpy.where(pixels(), 100.0, x)


def seen(x):
    """The visible pixels changed."""
    return jax.numpy.where(pixels(), x, 100.0)


def test_hidden_pixels_are_not_seen():
    _, (prediction, of_other, of_seen), *_ = step()
    np.testing.assert_allclose(of_other, prediction, atol=1e-5)
    assert np.abs(of_seen - prediction).max() > 1e-2


def layer_norm(x, params):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * params["scale"] + params["bias"]


def dense(x, params):
    return x @ params["kernel"] + params["bias"]


def gelu(x):
    return x * 0.5 * (1.0 + np.vectorize(math.erf)(x / np.sqrt(2.0)))


def positions():
    """Of a grid of 4 x 4 in 16 dimensions."""
    angle = np.arange(4)[:, None] * 10000.0 ** -(np.arange(4) / 4)
    wave = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)  # of a row or column
    return np.array([np.concatenate([wave[i % 4], wave[i // 4]]) for i in range(16)])


def test_each_block_mixes_the_encoders_maps_and_queries_do_not_see_each_other():
    params, (prediction, *_), _, _, maps = step()
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params["decoder"])
    for row, place in ((0, 3), (2, 9)):
        x = p["mask_token"] + positions()[place]
        for i in range(2):
            mixed = sum(p["map_weights"][m, i] * maps[row, m] for m in range(3))
            y = layer_norm(mixed, p[f"map_norm_{i}"])
            block = p[f"cross_{i}"]
            query = dense(layer_norm(x, block["norm1"]), block["q"]).reshape(2, 8)
            keys, values = np.split(dense(y, block["kv"]), 2, axis=-1)
            keys, values = keys.reshape(-1, 2, 8), values.reshape(-1, 2, 8)
            found = []
            for head in range(2):
                logits = keys[:, head] @ query[head] / np.sqrt(8)
                weights = np.exp(logits - logits.max())
                found.append(weights / weights.sum() @ values[:, head])
            x = x + dense(np.concatenate(found), block["proj"])
            x = x + dense(gelu(dense(layer_norm(x, block["norm2"]), block["mlp"]["fc1"])), block["mlp"]["fc2"])
        expected = dense(layer_norm(x, p["norm"]), p["pixels"])
        found = prediction[row, np.flatnonzero(MASK[row]).tolist().index(place)]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_the_maps_are_what_enters_the_first_block_and_the_outputs_of_all():
    *_, maps = step()
    assert maps.shape == (4, 3, 5, 16)
    assert np.all(np.abs(np.diff(maps, axis=1)).max(axis=(0, 2, 3)) > 1e-2)


def test_loss_is_that_of_all_hidden_patches_or_of_some():
    _, (prediction, *_), outputs, *_ = step()
    patches = patchify(X).astype(np.float64)
    mean, deviation = patches.mean(-1, keepdims=True), np.sqrt(patches.var(-1, ddof=1, keepdims=True) + 1e-6)
    target = ((patches - mean) / deviation)[MASK].reshape(4, 12, 16)
    errors = np.mean((prediction - target) ** 2, axis=-1)
    np.testing.assert_allclose(outputs[0.75].loss, errors.mean(), rtol=1e-4)
    np.testing.assert_allclose(outputs[0.75].metrics["patch_mean_loss"], 15 / 16, rtol=1e-4)
    assert errors.min() < outputs[0.25].loss < errors.max() and outputs[0.25].loss != outputs[0.75].loss


def test_some_of_the_hidden_patches_are_those_of_least_noise():
    noise = np.random.default_rng(1).random(MASK.shape)
    asked = hidden(jax.numpy.array(MASK), 0.25, jax.numpy.array(noise))
    assert asked.shape == (4, 4)
    for row in range(4):
        places = np.flatnonzero(MASK[row])
        assert set(np.asarray(asked)[row].tolist()) == set(places[np.argsort(noise[row, places])][:4].tolist())


def test_the_picture_keeps_what_was_seen_and_draws_all_that_is_hidden():
    _, (prediction, *_), _, pictures, _ = step()
    patches = patchify(X).astype(np.float64)
    mean, deviation = patches.mean(-1, keepdims=True), np.sqrt(patches.var(-1, ddof=1, keepdims=True) + 1e-6)
    made = patchify(pictures["reconstruction"])
    np.testing.assert_allclose(made[~MASK], patches[~MASK], rtol=1e-5)
    expected = prediction.reshape(-1, 16) * deviation[MASK] + mean[MASK]
    np.testing.assert_allclose(made[MASK], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("unchecked")
def test_the_weights_of_the_maps_are_drawn_by_xaviers_rule():
    decoder = CrossDecoder(dim=8, depth=12, heads=2, pixels=4, grid=(2, 3))
    maps = np.zeros((1, 13, 1, 4), np.float32)
    params = jax.jit(decoder.init)(jax.random.key(0), maps, np.zeros((1, 1), np.int32))["params"]
    largest = np.abs(params["map_weights"]).max()
    assert 0.9 * np.sqrt(6 / 25) < largest <= np.sqrt(6 / 25)


def test_more_predictions_than_hidden_patches_are_refused():
    with pytest.raises(ValueError, match=r"prediction_ratio=0\.8 is more than mask_ratio=0\.75"):
        make(prediction_ratio=0.8)


def test_more_maps_than_there_are_are_refused():
    backbone = make().backbone
    with pytest.raises(ValueError, match=r"last_blocks must be at most depth \+ 1 = 3, got 4"):
        jax.eval_shape(functools.partial(backbone.init, last_blocks=4), jax.random.key(0), X)

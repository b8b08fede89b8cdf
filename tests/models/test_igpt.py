import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from tests.models import drawn

SIDE, COLORS = 4, 5
X = np.random.default_rng(0).uniform(-1, 1, (3, SIDE, SIDE, 2)).astype(np.float32)
PALETTE = np.random.default_rng(1).uniform(-1, 1, (COLORS, 2)).astype(np.float32)
SMALL = dict(dim=8, heads=2, depth=3, image_size=SIDE, colors=COLORS)


def make(**options):
    return models.create("igpt_small", **{**SMALL, **options})


def colors_of(x):
    """The nearest color of each pixel, [images, pixels]."""
    pixels = x.reshape(len(x), -1, 1, 2)
    return np.argmin(((pixels - PALETTE) ** 2).sum(-1), axis=-1)


@functools.cache
def variables(causal=True):
    found = drawn.variables_of(make(causal=causal), X[:1])
    return jax.tree.map(jnp.asarray, {**found, "batch_stats": {"palette": PALETTE}})


def compiled(**options):
    model, of = make(**options), variables(options.get("causal", True))
    return jax.jit(lambda x, hidden=None: model.apply(of, x, method="outputs", hidden=hidden))


def changed(pixel):
    """X with another color at this pixel, in the order of rows."""
    y = X.reshape(3, -1, 2).copy()
    other = PALETTE[(colors_of(X)[:, pixel] + 1) % COLORS]
    y[:, pixel] = other
    return y.reshape(X.shape)


def test_colors_are_the_nearest_and_do_not_depend_on_smaller_changes():
    outputs = compiled()
    _, found = outputs(X)
    np.testing.assert_array_equal(found, colors_of(X))
    of_colors = PALETTE[colors_of(X)].reshape(X.shape)
    np.testing.assert_array_equal(outputs(of_colors)[0], outputs(X)[0])


def test_what_predicts_a_pixel_sees_those_before_it_alone():
    outputs = compiled()
    first, _ = outputs(X)
    assert first.shape == (3, SIDE**2, 8)
    for pixel in (0, 7, SIDE**2 - 1):
        moved = np.abs(np.asarray(outputs(changed(pixel))[0]) - first).max((0, 2)) > 1e-6
        np.testing.assert_array_equal(moved, np.arange(SIDE**2) > pixel)


def test_without_causality_all_see_all_but_hidden_pixels():
    outputs = compiled(causal=False)
    hidden = np.zeros((3, SIDE**2), bool)
    hidden[:, 7] = True
    seen, unseen = (np.asarray(outputs(x, hidden)[0]) for x in (X, changed(7)))
    np.testing.assert_array_equal(seen, unseen)
    assert np.all(np.abs(np.asarray(outputs(changed(5), hidden)[0]) - seen).max((0, 2)) > 1e-7)


def layer_norm(x, params):
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return normed * params["scale"] + params["bias"]


@pytest.mark.parametrize("block", [1, 3])
def test_features_are_a_middle_blocks_as_the_next_block_normalizes_them(block):
    model, params = make(feature_block=block), variables()["params"]["body"]
    one_hot = np.eye(COLORS, dtype=np.float32)[colors_of(X)].reshape(3, SIDE, SIDE, COLORS)
    sees = np.tril(np.ones((1, SIDE**2 + 1, SIDE**2 + 1), bool))

    @jax.jit
    def run(x, one_hot):
        body = model.vit(3, parent=None)
        blocks = body.apply({"params": params}, one_hot, attend=jnp.array(sees), last_blocks=3)
        return model.apply(variables(), x), model.apply(variables(), x, method="feature_map"), blocks

    h, of_places, blocks = run(X, one_hot)
    norm = params["norm"] if block == 3 else params["blocks_1"]["norm1"]
    expected = layer_norm(np.asarray(blocks)[:, block - 1, 1:], norm)  # without the start token
    np.testing.assert_allclose(of_places.reshape(3, -1, 8), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(h, expected.mean(axis=1), rtol=1e-3, atol=1e-4)


def test_images_of_another_size_are_resized():
    model = make()
    large = np.repeat(np.repeat(X, 2, axis=1), 2, axis=2)
    resized = model.resize(jnp.array(large))
    assert resized.shape == X.shape
    np.testing.assert_allclose(model.resize(jnp.ones((1, 9, 7, 2))), 1.0, rtol=1e-5)


def test_the_block_in_the_middle_is_the_default():
    assert [make(depth=depth).features_after for depth in (1, 4, 5)] == [1, 2, 2]
    assert models.create("igpt_large").features_after == 24


def test_a_block_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="feature_block=4 is more than depth=3"):
        make(feature_block=4)

import functools

import jax
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.methods.toolkit.autoencoding import Decoder
from tests.methods import drawn

RUN = Schedule(batch_size=4, steps=100, steps_per_epoch=10, num_images=60)
MASK = np.array([[1, 1, 0, 1] * 4, [0, 1, 1, 1] * 4, [1, 1, 1, 0] * 4, [1, 0, 1, 1] * 4], bool)  # 12 of 16 each
X = (5.0 + 2.0 * np.random.default_rng(0).normal(size=(4, 16, 16, 1))).astype(np.float32)


def make(**options):
    backbone = models.create(
        "vit_tiny_patch16_224", dim=16, depth=1, heads=2, patch_size=4, image_size=16, positions="sincos"
    )
    return METHODS["mae"](backbone, RUN, decoder_dim=16, decoder_depth=1, decoder_heads=2, **options)


@functools.cache
def predictor():
    """(params, state, predict: images -> prediction)"""
    method = make()
    params, state = drawn.draw(method, X[:1])
    predict = jax.jit(lambda params, x, mask: method.predict(params, x, mask, jax.random.key(0), None)[0])
    return params, state, lambda x: np.asarray(predict(params, x, MASK))


@functools.cache
def step():
    """{normalize: output}, pictures"""
    params, state, _ = predictor()

    @jax.jit
    def run(params, batch, rng):
        outputs = {normalize: make(normalize=normalize).loss(params, state, batch, rng) for normalize in (True, False)}
        return outputs, make().pictures(params, state, batch, rng)

    return jax.device_get(run(params, {"views": (X,), "masks": (MASK,)}, jax.random.key(2)))


def patchify(x):
    """[batch, patches, pixels]"""
    return x.reshape(4, 4, 4, 4, 4).swapaxes(2, 3).reshape(4, 16, 16)


def normalized():
    """(the patches, their means, their deviations), in float64"""
    patches = patchify(X).astype(np.float64)
    mean, deviation = patches.mean(-1, keepdims=True), np.sqrt(patches.var(-1, ddof=1, keepdims=True) + 1e-6)
    return (patches - mean) / deviation, mean, deviation


def test_hidden_pixels_are_not_seen():
    predict = predictor()[-1]
    hidden = MASK.reshape(4, 4, 4).repeat(4, axis=1).repeat(4, axis=2)[..., None]
    prediction, other = predict(X), np.float32(100.0)
    np.testing.assert_allclose(predict(np.where(hidden, other, X)), prediction, atol=1e-5)
    assert np.abs(predict(np.where(hidden, X, other)) - prediction).max() > 1e-2


@pytest.mark.parametrize("normalize", [True, False])
def test_loss_is_that_of_the_hidden_patches(normalize):
    output = step()[0][normalize]
    patches = patchify(X).astype(np.float64)
    target = normalized()[0] if normalize else patches
    np.testing.assert_allclose(output.loss, np.mean((predictor()[-1](X) - target)[MASK] ** 2), rtol=1e-5)
    # Of the mean of each patch; normalized it is 0, and the patches of a unit, unbiased variance.
    spread = 15 / 16 if normalize else np.mean((patches - patches.mean(-1, keepdims=True))[MASK] ** 2)
    np.testing.assert_allclose(output.metrics["patch_mean_loss"], spread, rtol=1e-4)


def test_the_decoder_puts_each_seen_token_in_its_place():
    decoder = Decoder(dim=4, depth=0, heads=1, outputs=4, grid=(2, 3))
    places, numbers = (1, 3, 4), (1, 2, 3)  # of the tokens, of which the first is the class token
    tokens = np.random.default_rng(0).normal(size=(1, 4, 8)).repeat(4, axis=0).astype(np.float32)
    mask = np.array([[True, False, True, False, False, True]]).repeat(4, axis=0)
    for row, number in enumerate(numbers):
        tokens[1 + row, number] += 1.0
    apply = jax.jit(lambda rng, tokens, mask: decoder.init_with_output(rng, tokens, mask)[0])
    whole, *changed = np.asarray(apply(jax.random.key(1), tokens, mask))
    for out, place in zip(changed, places, strict=True):
        np.testing.assert_array_equal(np.any(np.abs(out - whole) > 1e-6, axis=-1), np.arange(6) == place)


def test_the_picture_keeps_what_was_seen_and_undoes_the_normalization():
    _, pictures = step()
    _, mean, deviation = normalized()
    image, seen, drawn_ = (patchify(pictures[name]) for name in ("image", "seen", "reconstruction"))
    np.testing.assert_array_equal(image, patchify(X))
    np.testing.assert_allclose(drawn_[~MASK], image[~MASK], rtol=1e-6)
    assert np.all(seen[MASK] == 0.0) and np.all(seen[~MASK] == image[~MASK])
    expected = predictor()[-1](X) * deviation + mean
    np.testing.assert_allclose(drawn_[MASK], expected[MASK], rtol=1e-4, atol=1e-4)


def test_a_resnet_is_refused():
    with pytest.raises(ValueError, match="use a ViT"):
        METHODS["mae"](models.create("resnet8"), RUN)


@pytest.mark.usefixtures("unchecked")
def test_learned_positions_of_the_decoder_are_of_all_tokens():
    decoder = Decoder(dim=8, depth=0, heads=1, outputs=4, grid=(2, 3), prefix=2, positions="learned")
    tokens, mask = np.ones((1, 5, 8), np.float32), np.array([[True, False, True, False, False, True]])
    made, variables = jax.jit(decoder.init_with_output)(jax.random.key(0), tokens, mask)
    assert variables["params"]["pos_embed"].shape == (1, 8, 8)
    assert made.shape == (1, 6, 4)
    assert len(np.unique(np.asarray(made)[0, [1, 3, 4]].round(5), axis=0)) == 3  # equal tokens at three places

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import losses, models
from ssl_jax.methods import METHODS, Run
from ssl_jax.methods.mae import Decoder
from ssl_jax.models.patches import patchify, unpatchify

RUN = Run(batch_size=4, steps=100, steps_per_epoch=10, num_images=60)
MASK = np.array([[1, 1, 0, 1] * 4, [0, 1, 1, 1] * 4, [1, 1, 1, 0] * 4, [1, 0, 1, 1] * 4], bool)  # 12 of 16 each


def make(**options):
    backbone = models.create(
        "vit_tiny_patch16_224", dim=16, depth=1, heads=2, patch_size=4, image_size=16, positions="sincos"
    )
    return METHODS["mae"](backbone, RUN, decoder_dim=16, decoder_depth=1, decoder_heads=2, **options)


def draw():
    return jax.random.normal(jax.random.key(0), (4, 16, 16, 1))


def test_hidden_pixels_are_not_seen():
    method, x = make(), draw()
    params, _ = method.init(jax.random.key(1), x[:1])
    hidden = unpatchify(jnp.broadcast_to(jnp.asarray(MASK)[..., None], (4, 16, 16)), (16, 16), 4)
    predict = lambda x: method.predict(params, x, jnp.asarray(MASK), None, None)[0]  # noqa: E731
    other = jnp.where(hidden, 100.0, x)
    np.testing.assert_allclose(predict(other), predict(x), atol=1e-5)
    assert np.abs(np.asarray(predict(jnp.where(hidden, x, 100.0)) - predict(x))).max() > 1e-2


@pytest.mark.parametrize("normalize", [True, False])
def test_loss_is_that_of_the_hidden_patches(normalize):
    method, x = make(normalize=normalize), draw()
    params, state = method.init(jax.random.key(1), x[:1])
    batch = {"views": (x,), "masks": (jnp.asarray(MASK),)}
    loss, (_, metrics) = method.loss(params, state, batch, jax.random.key(2))
    prediction, _ = method.predict(params, x, jnp.asarray(MASK), None, None)
    patches = patchify(x, 4)
    expected = losses.masked_pixels(prediction, patches, jnp.asarray(MASK), normalize=normalize)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    deviations = np.asarray(patches)[MASK] - np.asarray(patches)[MASK].mean(-1, keepdims=True)
    spread = np.mean(deviations**2) if not normalize else 15 / 16  # of a unit, unbiased variance
    np.testing.assert_allclose(metrics["patch_mean_loss"], spread, rtol=1e-4)


def test_the_decoder_puts_each_seen_token_in_its_place():
    decoder = Decoder(dim=4, depth=0, heads=1, pixels=4, grid=(2, 3))
    mask = jnp.array([[True, False, True, False, False, True]])
    tokens = jax.random.normal(jax.random.key(0), (1, 4, 8))
    params = decoder.init(jax.random.key(1), tokens, mask)["params"]

    def out(tokens):
        return decoder.apply({"params": params}, tokens, mask)

    for place, token in ((1, 1), (3, 2), (4, 3)):
        changed = np.any(np.abs(out(tokens.at[0, token].add(1.0)) - out(tokens)) > 1e-6, axis=(0, 2))
        np.testing.assert_array_equal(changed, np.arange(6) == place)


def test_the_picture_keeps_what_was_seen_and_undoes_the_normalization():
    method, x = make(), 5.0 + 2.0 * draw()
    params, state = method.init(jax.random.key(1), x[:1])
    pictures = method.pictures(params, state, {"views": (x,), "masks": (jnp.asarray(MASK),)}, jax.random.key(2))
    drawn, seen = (np.asarray(patchify(pictures[name], 4)) for name in ("reconstruction", "seen"))
    np.testing.assert_allclose(drawn[~MASK], np.asarray(patchify(x, 4))[~MASK], rtol=1e-6)
    assert np.all(seen[MASK] == 0.0)
    assert 4.0 < drawn[MASK].mean() < 6.0


def test_a_resnet_is_refused():
    with pytest.raises(ValueError, match="use a vision transformer"):
        METHODS["mae"](models.create("resnet8"), RUN)

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.config import parse
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.methods.fcmae import Decoder
from ssl_jax.training import augmenting, build
from tests.methods import drawn
from tests.methods.test_every_method import load

RUN = Schedule(batch_size=4, steps=100, steps_per_epoch=10, num_images=60)
RNG = np.random.default_rng(0)
# of 2 x 3 squares
MASK = np.array([[1, 0, 1, 1, 0, 1], [0, 1, 1, 0, 1, 0], [1, 1, 0, 0, 1, 1], [1, 1, 1, 1, 0, 1]], bool)
X = (2.0 + RNG.normal(size=(4, 8, 12, 1))).astype(np.float32)


def make(**options):
    backbone = models.create("convnextv2_atto", stages=(1, 1), base_width=8, patch_size=2)
    return METHODS["fcmae"](backbone, RUN, decoder_dim=8, **options)


@functools.cache
def step():
    """images -> ((loss, metrics, prediction), gradient of the parameters), for normalize=True and False"""
    params, state = drawn.draw(make(), X[:1])

    def one(params, x, mask, normalize):
        method = make(normalize=normalize)
        output = method.loss(params, state, {"views": (x,), "masks": (mask,)}, jax.random.key(2))
        return output.loss, (output.metrics, method.predict(params, state, x, mask, None, None)[0])

    @jax.jit
    def run(params, x, mask):
        with_gradient = jax.value_and_grad(functools.partial(one, normalize=True), has_aux=True)
        return with_gradient(params, x, mask), one(params, x, mask, False)

    return lambda x: jax.device_get(run(params, x, MASK))


def squares():
    """[batch, squares, pixels]"""
    return X.reshape(4, 2, 4, 3, 4).swapaxes(2, 3).reshape(4, 6, 16).astype(np.float64)


def test_hidden_pixels_are_not_seen():
    hidden = MASK.reshape(4, 2, 3).repeat(4, axis=1).repeat(4, axis=2)[..., None]
    _, (_, (_, prediction)) = step()(X)
    _, (_, (_, same)) = step()(np.where(hidden, np.float32(100.0), X))
    _, (_, (_, other)) = step()(np.where(hidden, X, np.float32(100.0) * X**2))
    np.testing.assert_allclose(same, prediction, atol=1e-5)
    assert np.abs(other - prediction).max() > 1e-2


def test_the_loss_is_that_of_the_hidden_squares():
    ((loss, (metrics, prediction)), _), (plain, (plain_metrics, _)) = step()(X)
    centered = squares() - squares().mean(-1, keepdims=True)
    normalized = centered / np.sqrt(squares().var(-1, ddof=1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(loss, np.mean((prediction - normalized)[MASK] ** 2), rtol=1e-5)
    np.testing.assert_allclose(plain, np.mean((prediction - squares())[MASK] ** 2), rtol=1e-5)
    # What predicting each square's mean would cost: 15 / 16 is the biased variance of what has an unbiased one of 1.
    np.testing.assert_allclose(metrics["square_mean_loss"], 15 / 16, rtol=1e-4)
    np.testing.assert_allclose(plain_metrics["square_mean_loss"], np.mean(centered[MASK] ** 2), rtol=1e-4)


def test_every_weight_but_the_last_layer_norms_has_a_gradient():
    (_, gradient), _ = step()(X)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all()
        assert np.any(leaf != 0.0) != ("head" in jax.tree_util.keystr(path)), path


def test_in_the_decoder_hidden_places_begin_alike_and_visible_ones_with_their_features():
    decoder = Decoder(dim=4, depth=0, pixels=5)
    x = RNG.normal(size=(4, 2, 3, 8)).astype(np.float32)
    found = jax.jit(lambda x, mask: decoder.init_with_output(jax.random.key(1), x, mask)[0])(x, MASK)
    assert np.ptp(found[MASK], axis=0).max() == 0.0
    assert np.ptp(found[~MASK], axis=0).min() > 0.0


def test_of_49_squares_30_are_hidden_as_the_authors_round_up():
    config = parse(load("fcmae", "imagenet_base"))
    method = build.method(config, RUN)
    (mask,) = augmenting.masks(config, method, augmenting.augmentations(config, method.views))
    assert mask.most((224, 224)) == 30


def test_a_vit_is_refused():
    with pytest.raises(ValueError, match=r"which a ViT cannot do; use a ConvNeXt or a ResNet"):
        METHODS["fcmae"](models.create("vit_tiny_patch16_224"), RUN)


def test_a_resnet_can_be_trained_too():
    method = METHODS["fcmae"](models.create("resnet8", stages=(1, 1), width=0.25), RUN, decoder_dim=8)
    params, state = drawn.draw(method, X[:1])
    batch = {"views": (jnp.asarray(X),), "masks": (jnp.asarray(MASK),)}
    shapes = jax.eval_shape(lambda p, s: method.loss(p, s, batch, jax.random.key(0)), params, state)
    assert shapes.embeddings.shape == (1, 4, 8)
    assert jax.tree.structure(shapes.state) == jax.tree.structure(state)

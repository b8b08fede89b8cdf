import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax import losses, models
from ssl_jax.methods import METHODS, Run
from ssl_jax.models.patches import patchify, unpatchify

RUN = Run(batch_size=4, steps=100, steps_per_epoch=10, num_images=60)
MASK = np.random.default_rng(0).random((4, 16)) < 0.6


def setup():
    backbone = models.create("vit_tiny_patch16_224", dim=16, depth=1, heads=2, patch_size=4, image_size=16)
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

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax import losses, models
from ssl_jax.methods import METHODS, Schedule

RUN = Schedule(batch_size=4, steps=100, steps_per_epoch=10, num_images=60)


def test_loss_is_the_bound_with_the_divergence_warmed_up():
    method = METHODS["vae"](
        models.create("resnet8", stages=(1,), width=2.0), RUN, latent=3, warmup_steps=10, decoder_width=4
    )
    x = jax.random.normal(jax.random.key(0), (4, 14, 14, 1))
    params, state = method.init(jax.random.key(1), x[:1])
    batch, rng = {"views": (x,), "index": jnp.arange(4)}, jax.random.key(2)
    prediction, mean, log_variance, *_ = method.predict(params, state, batch, rng, None)
    assert prediction.shape == x.shape
    for step, weight in ((0, 0.0), (5, 0.5), (20, 1.0)):
        state = method.update(params, state, jnp.asarray(step))
        output = method.loss(params, state, batch, rng)
        expected = losses.vae(prediction, x, mean, log_variance, variance=0.1, beta=weight)
        np.testing.assert_allclose(output.loss, sum(expected), rtol=1e-4)
        np.testing.assert_allclose(output.metrics["divergence"], expected[1], rtol=1e-4, atol=1e-6)


def test_codes_are_drawn_by_the_images_index():
    method = METHODS["vae"](models.create("resnet8", stages=(1,), width=2.0), RUN, latent=3, decoder_width=4)
    x = jnp.broadcast_to(jax.random.normal(jax.random.key(0), (1, 14, 14, 1)), (4, 14, 14, 1))
    params, state = method.init(jax.random.key(1), x[:1])
    first, second = (
        method.predict(params, state, {"views": (x,), "index": jnp.array(index)}, jax.random.key(2), None)[0]
        for index in ([0, 1, 2, 3], [1, 0, 3, 2])
    )
    np.testing.assert_allclose(first[jnp.array([1, 0, 3, 2])], second, atol=1e-4)
    assert np.abs(np.asarray(first - second)).max() > 1e-3

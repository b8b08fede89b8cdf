import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule

RUN = Schedule(batch_size=4, steps=100, steps_per_epoch=10, num_images=60)
INDEX = jnp.arange(64)


def make(**options):
    return METHODS["denoising"](models.create("resnet8", stages=(1,), width=2.0), RUN, decoder_width=4, **options)


def test_noises_do_what_they_say():
    x = jnp.full((64, 16, 16, 3), 0.5)
    noise = {
        name: np.asarray(make(noise=name, level=0.3).corrupt(jax.random.key(0), INDEX, x))
        for name in ("masking", "gaussian", "salt_and_pepper")
    }
    for name, values in (("masking", (0.0,)), ("salt_and_pepper", (-2.0, 2.0))):
        np.testing.assert_array_equal(np.unique(noise[name]), sorted((0.5, *values)))
        assert np.all(noise[name] == noise[name][..., :1])  # a pixel's channels alike
        for value in values:
            np.testing.assert_allclose(np.mean(noise[name] == value), 0.3 / len(values), atol=0.015)
    np.testing.assert_allclose(noise["gaussian"].std(), 0.3, rtol=0.02)
    np.testing.assert_allclose(noise["gaussian"].mean(), 0.5, atol=0.01)


def test_the_target_is_the_clean_image():
    method = make(noise="gaussian", level=1.0)
    x = jax.random.normal(jax.random.key(0), (4, 14, 14, 1))
    params, state = method.init(jax.random.key(1), x[:1])
    batch, rng = {"views": (x,), "index": INDEX[:4]}, jax.random.key(2)
    output = method.loss(params, state, batch, rng)
    pictures = method.pictures(params, state, batch, rng)
    np.testing.assert_allclose(output.loss, np.mean((pictures["reconstruction"] - x) ** 2), rtol=1e-4)
    np.testing.assert_allclose(output.metrics["mean_loss"], np.mean(x**2), rtol=1e-5)
    assert np.mean((pictures["corrupted"] - x) ** 2) > 0.7


@pytest.mark.parametrize("options", [{"noise": "snow"}, {"level": 1.5}, {"level": 0.0}])
def test_noise_that_there_is_not_is_refused(options):
    with pytest.raises(ValueError, match=r"noise|level"):
        make(**options)

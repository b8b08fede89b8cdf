import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.models.lab import lab_of_normalized, normalized_of_lab
from ssl_jax.models.resnet import ResNet
from ssl_jax.weights import load_backbone, save_backbone
from tests.models import drawn

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
OPTIONS = dict(name="lightness_resnet8", stages=(1, 1), width=0.5, mean=MEAN, std=STD)


def test_features_are_a_resnets_of_the_lightness_also_when_loaded(tmp_path):
    model = models.create(**OPTIONS)
    plain = ResNet(stages=(1, 1), base_width=16, stem="strided", width=0.5)
    rgb = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
    x = ((rgb - MEAN) / STD).astype(np.float32)
    variables = drawn.variables_of(model, x)

    @jax.jit
    def run(variables, x):
        lightness = lab_of_normalized(x, MEAN, STD)[..., :1]
        gray = normalized_of_lab(jnp.concatenate([lightness, jnp.zeros((2, 16, 16, 2))], axis=-1), MEAN, STD)
        # As one batch, which is one network for the compiler.
        h, of_gray, of_others = jnp.split(model.apply(variables, jnp.concatenate([x, gray, 0.5 * x])), 3)
        return h, of_gray, of_others, plain.apply(variables, (lightness - 50) / 50)

    h, of_gray, of_others, expected = jax.device_get(run(variables, x))
    assert h.shape == (2, model.dim) == (2, 16)
    np.testing.assert_allclose(h, expected, rtol=1e-5, atol=1e-6)
    assert jax.eval_shape(functools.partial(model.apply, method="feature_map"), variables, x).shape == (2, 4, 4, 16)

    # Gray images of the same lightness have the same features; others have not.
    np.testing.assert_allclose(of_gray, h, atol=1e-4)
    assert np.max(np.abs(of_others - h)) > 1e-2

    save_backbone(tmp_path, variables, dict(model=OPTIONS, image_size=[16, 16], channels=3, mean=MEAN, std=STD))
    np.testing.assert_allclose(load_backbone(tmp_path).features(rgb), h, rtol=1e-4, atol=1e-5)


def test_refusals():
    with pytest.raises(ValueError, match=r"got mean=\(0.5,\), std=\(0.2,\); read color images with data.channels=3"):
        models.create("lightness_resnet8", mean=(0.5,), std=(0.2,))
    with pytest.raises(ValueError, match="got images of 1 channels"):
        models.create("lightness_resnet8").init(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))

import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.models.resnet import ResNet
from ssl_jax.models.split import split_bands, split_lab
from ssl_jax.weights import load_backbone, save_backbone
from tests.models import drawn

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


@pytest.mark.parametrize(
    "color, expected",
    [("white", [1, -0.06534, 0.06612]), ("black", [-1, -0.06534, 0.06612]), ("green", [0.7547, -1, 0.8884])],
)
def test_split_lab_undoes_the_normalization(color, expected):
    """White and black have L 100 and 0, a = b = 0; green L 87.73, b 83.19 and the least a, -86.18."""
    rgb = {"white": [1.0, 1.0, 1.0], "black": [0.0, 0.0, 0.0], "green": [0.0, 1.0, 0.0]}[color]
    x = (np.array(rgb, np.float32) - np.array(MEAN)) / np.array(STD)
    split = jax.jit(functools.partial(split_lab, mean=MEAN, std=STD))
    lightness, colors = jax.device_get(split(x.astype(np.float32).reshape(1, 1, 1, 3)))
    np.testing.assert_allclose([*lightness.ravel(), *colors.ravel()], expected, atol=1e-3)


def test_split_bands_is_a_blur_and_the_rest():
    x = np.random.default_rng(0).normal(size=(2, 9, 7, 2)).astype(np.float32)
    low, high = jax.device_get(jax.jit(split_bands)(x))
    taps = np.array([1, 4, 6, 4, 1], np.float32) / 16
    expected = [cv2.sepFilter2D(image, -1, taps, taps, borderType=cv2.BORDER_REPLICATE) for image in x]
    np.testing.assert_allclose(low, expected, atol=1e-6)
    np.testing.assert_allclose(low + high, x, atol=1e-6)


@pytest.mark.parametrize("parts, channels", [("lab", 3), ("bands", 1)])
def test_features_are_two_half_as_wide_resnets_one_after_the_other(parts, channels, tmp_path):
    options = dict(name="split_resnet8", stages=(1, 1), width=0.5, parts=parts, mean=MEAN, std=STD)
    model = models.create(**options)
    half = ResNet(stages=(1, 1), base_width=16, stem="strided", width=0.25)
    x = np.random.default_rng(0).normal(size=(2, 16, 16, channels)).astype(np.float32)
    variables = drawn.variables_of(model, x)

    @jax.jit
    def run(variables, x):
        split = split_lab(x, MEAN, STD) if parts == "lab" else split_bands(x)
        halves = []
        for name, part in zip(("first", "second"), split, strict=True):
            own = {collection: values[name] for collection, values in variables.items()}
            halves.append(half.apply(own, part))
        return model.apply(variables, x), jnp.concatenate(halves, axis=1)

    h, expected = run(variables, x)
    assert h.shape == (2, model.dim) and model.dim == 16
    np.testing.assert_allclose(h, expected, rtol=1e-5, atol=1e-6)
    assert jax.eval_shape(functools.partial(model.apply, method="feature_map"), variables, x).shape == (2, 4, 4, 16)

    meta = dict(model=options, image_size=[16, 16], channels=channels, mean=MEAN[:channels], std=STD[:channels])
    save_backbone(tmp_path, variables, meta)
    loaded = load_backbone(tmp_path).features(x, normalized=True)
    np.testing.assert_allclose(loaded, h, rtol=1e-5, atol=1e-6)


def test_refusals():
    with pytest.raises(ValueError, match="parts must be one of lab, bands, got 'hsv'"):
        models.create("split_resnet8", parts="hsv")
    with pytest.raises(ValueError, match=r"got images of 1 channels.*for images of other channels"):
        models.create("split_resnet8").init(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))

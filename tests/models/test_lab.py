import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.models import lab as module

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
lab_of_rgb, rgb_of_lab = jax.jit(module.lab_of_rgb), jax.jit(module.rgb_of_lab)


def colors():
    rgb = np.random.default_rng(0).uniform(size=(64, 64, 3)).astype(np.float32) ** 3  # many dark ones, too
    rgb[0, :8] = np.eye(8, 3)
    return rgb


def test_lab_is_opencvs():
    # OpenCV interpolates in a table of 33 steps a color: off by up to 0.6.
    np.testing.assert_allclose(lab_of_rgb(colors()), cv2.cvtColor(colors(), cv2.COLOR_RGB2Lab), atol=0.8)


def test_rgb_is_opencvs():
    lab = np.random.default_rng(1).uniform((0, -100, -100), (100, 100, 100), (64, 64, 3)).astype(np.float32)
    # Also of colors that no screen has, which OpenCV cuts off, too.
    np.testing.assert_allclose(rgb_of_lab(lab), cv2.cvtColor(lab, cv2.COLOR_Lab2RGB), atol=5e-3)


def test_rgb_comes_back():
    np.testing.assert_allclose(rgb_of_lab(lab_of_rgb(colors())), colors(), atol=1e-4)


def test_grays_have_no_color():
    gray = np.linspace(0.0, 1.0, 256, dtype=np.float32)[:, None].repeat(3, axis=1)
    lab = np.asarray(lab_of_rgb(gray))
    np.testing.assert_allclose(lab[:, 1:], 0.0, atol=1e-3)
    np.testing.assert_allclose(lab[[0, 255], 0], [0.0, 100.0], atol=1e-4)


def test_normalization_is_undone_and_done_again():
    rgb = colors()[None]
    x = ((rgb - MEAN) / STD).astype(np.float32)

    @jax.jit
    def run(x):
        lab = module.lab_of_normalized(x, MEAN, STD)
        return lab, module.normalized_of_lab(lab, MEAN, STD)

    lab, again = run(x)
    np.testing.assert_allclose(lab, lab_of_rgb(colors())[None], atol=1e-2)
    np.testing.assert_allclose(again, x, atol=1e-3)


def test_images_without_three_channels_are_refused():
    with pytest.raises(ValueError, match=r"images of 1 channels, .* read color images with data\.channels=3"):
        module.lab_of_normalized(jnp.zeros((1, 4, 4, 1)), MEAN, STD)

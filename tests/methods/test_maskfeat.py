import functools

import jax
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.methods.maskfeat import hog

RUN = Schedule(batch_size=4, steps=100, steps_per_epoch=10, num_images=60)
histograms_of = jax.jit(functools.partial(hog, cell=4, bins=9))


def hog_by_loops(image, cell, bins):
    """One channel, from the definition."""
    padded = np.pad(image, 1, mode="reflect")
    sobel = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]])
    height, width = image.shape
    histograms = np.zeros((height // cell, width // cell, bins))
    for i in range(height):
        for j in range(width):
            window = padded[i : i + 3, j : j + 3]
            gx, gy = np.sum(window * sobel), np.sum(window * sobel.T)
            number = int(np.floor(np.arctan2(gx, gy) / np.pi * bins)) % bins
            histograms[i // cell, j // cell, number] += np.hypot(gx, gy)
    return histograms / np.linalg.norm(histograms, axis=-1, keepdims=True)


def test_hog_is_its_definition():
    images = np.random.default_rng(0).normal(size=(2, 12, 8, 2)).astype(np.float32)
    found = np.asarray(histograms_of(images))
    assert found.shape == (2, 3, 2, 18)
    for image, histograms in zip(images, found, strict=True):
        for channel in range(2):
            expected = hog_by_loops(image[..., channel].astype(np.float64), 4, 9)
            np.testing.assert_allclose(histograms[..., 9 * channel : 9 * (channel + 1)], expected, atol=1e-5)


@pytest.mark.parametrize("angle", [5, 30, 75, 110, 165])
def test_a_slope_has_one_direction_whichever_way_it_rises(angle):
    rows, columns = np.meshgrid(np.arange(16.0), np.arange(16.0), indexing="ij")
    slope = np.cos(np.radians(angle)) * rows + np.sin(np.radians(angle)) * columns
    up, down = np.asarray(histograms_of(np.stack([slope, -slope])[..., None].astype(np.float32)))[:, 1:3, 1:3]
    np.testing.assert_allclose(up, down, atol=1e-5)
    expected = np.zeros(9)
    expected[int(angle // 20)] = 1.0
    np.testing.assert_allclose(up, np.broadcast_to(expected, up.shape), atol=1e-5)


def test_brightness_and_contrast_change_nothing_and_flat_images_are_zeros():
    x = np.random.default_rng(0).normal(size=(16, 16, 1)).astype(np.float32)
    changed, plain = np.asarray(histograms_of(np.stack([3.0 * x + 7.0, x])))
    np.testing.assert_allclose(changed, plain, atol=1e-4)
    assert not np.any(histograms_of(np.ones((2, 16, 16, 1), np.float32)))


def test_loss_is_the_squared_error_of_the_hidden_patches_histograms():
    vit = dict(dim=16, depth=1, heads=2, patch_size=8, image_size=16, pool="norm_mean")
    method = METHODS["maskfeat"](models.create("vit_tiny_patch16_224", **vit), RUN, cell=4)

    @jax.jit
    def run(rng, batch):
        params, state = method.init(rng, batch["views"][0][:1])
        zero = {**params, "head": jax.tree.map(lambda leaf: 0.0 * leaf, params["head"])}
        return params["backbone"], method.loss(zero, state, batch, rng).loss

    numbers = np.random.default_rng(0)
    x, mask = numbers.normal(size=(4, 16, 16, 1)).astype(np.float32), numbers.random((4, 4)) < 0.5
    backbone, loss = jax.device_get(run(jax.random.key(1), {"views": (x,), "masks": (mask,)}))
    # They begin as the authors': biases of the blocks at 0.02, kernels of that deviation.
    np.testing.assert_allclose([backbone["blocks_0"][layer]["bias"] for layer in ("norm1", "norm2")], 0.02)
    np.testing.assert_allclose(np.std(backbone["patch_embed"]["proj"]["kernel"]), 0.02, rtol=0.1)
    # A prediction of 0: the histograms' own squares, of which a cell's add up to 1, in patches of 2x2 cells.
    np.testing.assert_allclose(loss, 4 / (4 * 9), rtol=1e-4)


def test_cells_must_divide_patches():
    vit = dict(dim=16, depth=1, heads=2, patch_size=6, image_size=12, pool="norm_mean")
    backbone = models.create("vit_tiny_patch16_224", **vit)
    with pytest.raises(ValueError, match="cell=4 does not divide patches of 6"):
        METHODS["maskfeat"](backbone, RUN, cell=4)

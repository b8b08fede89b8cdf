import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ssl_jax.data import resample
from ssl_jax.data.crop import RandomCrop, center_crop, random_crop
from ssl_jax.data.host_resample import FILTERS

REFERENCE = np.load(Path(__file__).parents[1] / "references" / "crop.npz")
CASES = {  # as in references/make_crop.py, which has the boxes from torchvision
    "landscape": ((375, 500), (0.08, 1.0), (3 / 4, 4 / 3)),
    "square": ((32, 32), (0.2, 1.0), (3 / 4, 4 / 3)),
    "elongated": ((40, 400), (0.3, 1.0), (3 / 4, 4 / 3)),
}


@pytest.mark.parametrize("name", CASES)
def test_boxes_are_distributed_as_torchvisions(name):
    (height, width), area, aspect = CASES[name]
    crop, rng = RandomCrop((8, 8), area, aspect), np.random.default_rng(0)
    theirs = REFERENCE[name].astype(float)
    ours = np.array([crop.box(height, width, rng) for _ in range(len(theirs))], float)
    top, left, h, w = ours.T
    assert (min(top.min(), left.min()), min(h.min(), w.min()) > 0) == (0, True)
    assert (top + h <= height).all()
    assert (left + w <= width).all()
    for statistic in (
        lambda box: box[:, 2] * box[:, 3],  # area
        lambda box: box[:, 3] / box[:, 2],  # aspect
        lambda box: box[:, 0],
        lambda box: box[:, 1],
    ):
        # Two samples of 4000 of one distribution exceed 0.0435 once in 1000 times; this seed's largest is 0.03.
        assert stats.ks_2samp(statistic(ours), statistic(theirs)).statistic < 0.0435


@pytest.mark.parametrize(
    "image, box",
    [
        ((100, 10), (43, 0, 13, 10)),  # too tall: as wide as it is, 10 / (3/4) high, in the middle
        ((10, 100), (0, 43, 10, 13)),
        ((30, 30), (0, 0, 30, 30)),
        ((1, 50), (0, 24, 1, 1)),
    ],
)
def test_where_no_try_fits_the_largest_centered_box(image, box):
    crop = RandomCrop((8, 8), area=(2.0, 2.0), aspect=(3 / 4, 4 / 3))  # twice the image
    assert crop.box(*image, np.random.default_rng(0)) == box


def test_the_whole_image():
    crop = RandomCrop((4, 4), area=(1.0, 1.0), aspect=(1.0, 1.0))
    image = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    np.testing.assert_array_equal(random_crop(image, crop, np.random.default_rng(0))[0], image)


def test_a_crop_shows_its_box():
    """Each pixel of the image holds its own position, so the crop tells where it is from."""
    image = np.stack(np.mgrid[:200, :250], axis=-1).astype(np.uint8)
    crop = RandomCrop((16, 24), area=(0.2, 0.5), aspect=(0.9, 1.1))
    for seed in range(20):
        top, left, height, width = crop.box(200, 250, np.random.default_rng(seed))
        shown = random_crop(image, crop, np.random.default_rng(seed))[0].astype(float)
        # Pixel i of n covers [i, i + 1] / n of the box, whose pixel k stands for [k, k + 1].
        rows = top + (np.arange(16) + 0.5) * height / 16 - 0.5
        columns = left + (np.arange(24) + 0.5) * width / 24 - 0.5
        # At the box's border the kernel is cut off, and what it gives is no plane. Pillow rounds twice.
        inner = np.s_[1:-1, 1:-1]
        np.testing.assert_allclose(shown[..., 0][inner], np.tile(rows[:, None], (1, 24))[inner], atol=1.01)
        np.testing.assert_allclose(shown[..., 1][inner], np.tile(columns, (16, 1))[inner], atol=1.01)


@pytest.mark.parametrize(
    "shape, size, share, rows, columns",
    [
        ((40, 60, 1), (40, 40), 1.0, (0, 40), (10, 50)),
        ((60, 40, 1), (40, 40), 1.0, (10, 50), (0, 40)),
        ((80, 120, 3), (20, 60), 1.0, (20, 60), (0, 120)),  # the result's aspect, not a square
        ((64, 64, 3), (28, 28), 224 / 256, (4, 60), (4, 60)),
        ((100, 3, 1), (50, 50), 1.0, (48, 51), (0, 3)),
        ((1, 1, 1), (5, 5), 1.0, (0, 1), (0, 1)),
    ],
)
def test_center_crop_shows_the_center(shape, size, share, rows, columns):
    height, width, channels = shape
    y, x = np.mgrid[:height, :width]
    image = np.repeat(np.minimum(y + x, 255)[..., None], channels, axis=-1).astype(np.uint8)
    shown = center_crop(image, size, share)
    assert shown.shape == (*size, channels)
    # A plane's mean is its value in the middle: of the region, and so of what is shown.
    assert shown.mean() == pytest.approx((sum(rows) + sum(columns)) / 2 - 1, abs=0.51)


def test_an_image_of_the_right_size_is_kept_bit_for_bit():
    image = np.random.default_rng(0).integers(0, 256, (28, 28, 1), np.uint8)
    np.testing.assert_array_equal(center_crop(image, (28, 28)), image)


def test_shrinking_is_antialiased():
    """The finest checkerboard becomes even gray, also where a new pixel takes in parts of old ones."""
    board = (np.indices((96, 96)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None]
    assert set(center_crop(board, (24, 24)).ravel()) == {128}
    thirds = np.kron(board[..., 0], np.ones((3, 3)))  # 36 * 8 = 96 * 3
    means = thirds.reshape(36, 8, 36, 8).mean(axis=(1, 3))
    np.testing.assert_allclose(center_crop(board, (36, 36))[..., 0].astype(float), means, atol=1)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_number_of_channels(channels):
    image = np.full((9, 7, channels), np.arange(channels) * 40, np.uint8)
    crop = RandomCrop((4, 4), (0.3, 1.0), (0.5, 2.0))
    np.testing.assert_array_equal(center_crop(image, (4, 6)), image[:4, :6])
    assert random_crop(image, crop, np.random.default_rng(0))[0].shape == (4, 4, channels)


@functools.partial(jax.jit, static_argnames=("size", "interpolation"))
def on_the_device(image, size, interpolation):
    """The whole of an image [height, width, channels]."""
    matrix = functools.partial(resample.interpolation_matrix, jnp.float32(0), interpolation=interpolation)
    rows, columns = (matrix(jnp.float32(old), old=old, new=new) for old, new in zip(image.shape[:2], size, strict=True))
    resized = resample.separable(jnp.float32(image.transpose(2, 0, 1)) / 255.0, rows, columns).transpose(1, 2, 0)
    return 255.0 * resized.clip(0.0, 1.0)


@pytest.mark.parametrize("channels, size", [(3, (9, 31)), (1, (20, 8)), (5, (5, 7))])
def test_the_host_resizes_as_the_device_by_either_kernel(channels, size):
    image = np.random.default_rng(0).integers(0, 256, (20, 17, channels), np.uint8)
    crops = {}
    for interpolation in FILTERS:
        whole = RandomCrop(size, (1.0, 1.0), (17 / 20, 17 / 20), interpolation)
        crops[interpolation] = random_crop(image, whole, np.random.default_rng(0))[0].astype(float)
        # Pillow rounds to uint8 after the columns and after the rows; the cubic kernel's weights add up to 1.5 or less.
        device = on_the_device(image, size, interpolation)
        np.testing.assert_allclose(crops[interpolation], device, atol=1.5)
    assert np.abs(crops["bilinear"] - crops["bicubic"]).mean() > 3


def test_a_window_of_the_resized_and_padded_image():
    """Each pixel of the image holds its own position, so the window tells where it is from; padding is black."""
    image = np.stack(np.mgrid[1:13, 1:17], axis=-1).astype(np.uint8)
    crop = RandomCrop((10, 14), (0.5, 1.0), (1.0, 1.0), shorter_side=12, padding=2)
    places = set()
    for seed in range(300):
        shown, (top, left, height, width) = random_crop(image, crop, np.random.default_rng(seed))
        row, column = round(top * 12), round(left * 16)
        places.add((row, column))
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
        np.testing.assert_array_equal(shown, padded[row + 2 : row + 12, column + 2 : column + 16])
        np.testing.assert_allclose((height, width), (10 / 12, 14 / 16))
    assert places == {(row, column) for row in range(-2, 5) for column in range(-2, 5)}


def test_a_window_is_of_the_image_with_its_shorter_side_resized():
    image = np.random.default_rng(0).integers(0, 256, (30, 45, 3), np.uint8)
    crop = RandomCrop((20, 30), (0.5, 1.0), (1.0, 1.0), shorter_side=20)
    shown, box = random_crop(image, crop, np.random.default_rng(0))
    np.testing.assert_allclose(shown, on_the_device(image, (20, 30), "bilinear"), atol=1.5)
    np.testing.assert_array_equal(box, [0, 0, 1, 1])

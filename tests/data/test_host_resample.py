"""Against Pillow, which torchvision resizes with."""

import cv2
import numpy as np
import pytest
from PIL import Image

from ssl_jax.data.crop import RandomCrop, random_crop
from ssl_jax.data.formats import decode_image
from ssl_jax.data.host_resample import FILTERS, resample
from ssl_jax.data.reader import reduction

PILLOWS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# (height, width) before and after: shrunk, enlarged, both, by little, by much, to and from a single pixel
SIZES = [
    ((375, 500), (224, 224)),
    ((240, 230), (224, 224)),
    ((150, 300), (224, 224)),
    ((300, 150), (224, 224)),
    ((100, 120), (224, 200)),
    ((224, 300), (224, 224)),
    ((97, 400), (31, 20)),
    ((40, 1), (10, 5)),
    ((1, 1), (3, 2)),
    ((60, 50), (1, 1)),
]


def photo(height, width, channels=3):
    """Smooth colors, edges and fine texture."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (max(height // 24, 1), max(width // 24, 1), 3), np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(float)
    y, x = np.mgrid[:height, :width]
    edges = np.where((x // 37 + y // 53) % 2, 40.0, -40.0)[..., None]
    image = np.clip(smooth + edges + rng.normal(0, 12, (height, width, 3)), 0, 255).astype(np.uint8)
    return np.tile(image, 2)[..., :channels]


def by_pillow(image, size, interpolation, mode="L"):
    channels = (Image.fromarray(channel, mode) for channel in np.moveaxis(image, 2, 0).copy())
    return np.stack([np.asarray(c.resize(size[::-1], PILLOWS[interpolation])) for c in channels], axis=2)


@pytest.mark.parametrize("before, after", SIZES)
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("interpolation, most, mean", [("bilinear", 2, 0.3), ("bicubic", 4, 0.35)])
def test_bytes_are_pillows_up_to_rounding(before, after, channels, interpolation, most, mean):
    image = photo(*before, channels)
    difference = np.abs(resample(image, after, interpolation).astype(int) - by_pillow(image, after, interpolation))
    assert difference.max() <= most and difference.mean() < mean


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("dtype, step", [("uint16", 1), ("int16", 1), ("float32", 0.01)])
def test_other_types_are_resized_as_floats(interpolation, dtype, step):
    values = np.random.default_rng(0).uniform(0, 30000, (50, 70, 2)) - 10000 * (dtype != "uint16")
    image = values.clip(0 if dtype == "uint16" else None).astype(dtype)
    for size in ((20, 90), (60, 30)):
        resized = resample(image, size, interpolation)
        ends = (-np.inf, np.inf) if dtype == "float32" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        expected = by_pillow(image.astype(np.float32), size, interpolation, "F").clip(*ends)
        assert resized.dtype == dtype
        np.testing.assert_allclose(resized.astype(float), expected, atol=step)


@pytest.mark.parametrize("interpolation", FILTERS)
def test_an_even_image_stays_even_and_a_missing_value_where_it_is(interpolation):
    for value in (0, 1, 127, 255):
        for size in ((37, 53), (3, 4), (150, 90), (70, 20)):
            assert set(resample(np.full((61, 47, 3), value, np.uint8), size, interpolation).ravel()) == {value}
    image = np.ones((40, 60, 1), np.float32)
    image[20, 30] = np.nan
    missing = np.isnan(resample(image, (10, 20), interpolation))
    assert 0 < missing.sum() <= 16 and missing[3:8, 8:13].sum() == missing.sum()


def test_a_part_of_an_image_is_resized_without_the_rest():
    image = photo(120, 160)
    part = image[20:90, 30:140]
    for size in ((32, 32), (90, 40), (200, 300)):
        np.testing.assert_array_equal(resample(part, size, "bilinear"), resample(part.copy(), size, "bilinear"))


def test_sums_of_bytes_are_exact():
    """So that every machine gives the same pixels, in whatever order it adds up: the whole resized is its parts."""
    image = photo(300, 200, 3)
    whole = resample(image, (100, 200), "bicubic")  # rows alone
    columns = [resample(image[:, column : column + 1], (100, 1), "bicubic") for column in range(200)]
    np.testing.assert_array_equal(whole, np.concatenate(columns, axis=1))
    turned = resample(image[::-1], (100, 200), "bicubic")[::-1]
    assert (np.abs(whole.astype(int) - turned) > 0).mean() < 0.01  # a weight that is adjusted to the sum may be another


@pytest.mark.parametrize("side", [224, 96])
def test_crops_of_a_jpeg_decoded_at_a_part_of_its_size(side):
    """Beside Pillow's, of the whole image: libjpeg shrinks by averages, not by a triangle."""
    data = cv2.imencode(".jpg", photo(1200, 1600)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
    crop = RandomCrop((side, side), (0.08, 1.0), (3 / 4, 4 / 3))
    whole = decode_image(data, 3, "photo")
    reduced = set()
    for seed in range(12):
        by = reduction(crop.shrinks(1200, 1600, np.random.default_rng(seed)))
        reduced.add(by)
        small = decode_image(data, 3, "photo", reduce=lambda height, width, by=by: by)
        ours, (top, left, height, width) = random_crop(small, crop, np.random.default_rng(seed))
        box = (1600 * left, 1200 * top, 1600 * (left + width), 1200 * (top + height))
        expected = np.asarray(Image.fromarray(whole).resize((side, side), PILLOWS["bilinear"], box))
        difference = np.abs(ours.astype(int) - expected)
        assert difference.max() <= 25 and difference.mean() < 3  # 18 and 2.5 are the most that was found
    assert len(reduced) > 1

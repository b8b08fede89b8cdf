"""What is measured of images, against NumPy over all pixels in float64."""

import numpy as np
import pytest

from ssl_jax import data
from ssl_jax.data.sources import ArraySource

RNG = np.random.default_rng(0)


def of_type(dtype):
    """[12, 9, 7, 3], with another range in each channel."""
    unit = RNG.random((12, 9, 7, 3))
    scaled = unit * [100, 50, 20] + [0, 10, 100]
    return scaled.astype(dtype) if dtype == np.float32 else np.rint(scaled).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32])
def test_range_mean_and_deviation_of_each_channel(dtype):
    images = of_type(dtype)
    found = data.statistics(images)
    pixels = images.reshape(-1, 3).astype(np.float64)
    low, high = pixels.min(axis=0), pixels.max(axis=0)
    assert (found["channels"], found["dtype"]) == (3, np.dtype(dtype).name)
    np.testing.assert_array_equal(found["value_range"], np.stack([low, high], axis=1).ravel())
    np.testing.assert_allclose(found["mean"], (pixels.mean(axis=0) - low) / (high - low), rtol=1e-3)
    np.testing.assert_allclose(found["std"], pixels.std(axis=0) / (high - low), rtol=1e-3)


def test_bytes_keep_their_range():
    images = of_type(np.uint8)
    found = data.statistics(images)
    assert (found["dtype"], found["value_range"]) == ("uint8", ())
    np.testing.assert_allclose(found["mean"], images.mean(axis=(0, 1, 2)) / 255, rtol=1e-3)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_a_given_range_cuts_the_values(dtype):
    images = of_type(dtype)
    found = data.statistics(images, value_range=(0.0, 60.0))
    unit = np.clip(images.reshape(-1, 3).astype(np.float64) / 60.0, 0.0, 1.0)
    assert found["value_range"] == (0.0, 60.0)
    np.testing.assert_allclose(found["mean"], unit.mean(axis=0), rtol=1e-3)
    np.testing.assert_allclose(found["std"], np.where(unit.std(axis=0) > 0, unit.std(axis=0), 1.0), rtol=2e-3)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_percentiles_leave_outliers_out(dtype):
    images = RNG.integers(100, 201, (10, 20, 20, 1)).astype(dtype)
    images[0, 0, 0, 0] = 60000
    low, high = data.statistics(images, percentiles=(1.0, 99.0))["value_range"]
    assert 100 <= low <= 103
    assert 197 <= high <= 200
    assert data.statistics(images)["value_range"][1] == 60000


def test_missing_values_do_not_count():
    images = of_type(np.float32)
    holes = RNG.random(images.shape) < 0.2
    whole = data.statistics(np.where(holes, np.float32(np.nan), images))
    pixels = [images[..., c][~holes[..., c]].astype(np.float64) for c in range(3)]
    np.testing.assert_allclose(whole["value_range"], [end for p in pixels for end in (p.min(), p.max())])
    np.testing.assert_allclose(whole["mean"], [(p.mean() - p.min()) / np.ptp(p) for p in pixels], rtol=1e-3)
    marked = np.where(holes, np.float32(-9999), images)
    assert data.statistics(marked, nodata=(-9999.0,)) == whole | {"nodata": (-9999.0,)}


def test_gray_and_color_count_as_color():
    gray, color = RNG.integers(0, 256, (2, 5, 5, 1), np.uint8), RNG.integers(0, 256, (3, 5, 5, 3), np.uint8)

    class Mixed(ArraySource):
        def read(self, index):
            return [*gray, *color][index], -1

    found = data.statistics(Mixed(np.zeros((5, 1, 1, 1), np.uint8)))
    expected = data.statistics(np.concatenate([np.repeat(gray, 3, axis=3), color]))
    assert found == expected


def test_other_mixtures_of_channels_are_refused_with_their_counts():
    images = [np.zeros((2, 2, n), np.uint8) for n in (3, 4, 4)]

    class Mixed(ArraySource):
        def read(self, index):
            return images[index], -1

    with pytest.raises(ValueError, match=r"channels \(2 of 4, 1 of 3\); say how .* config.data.channels=N"):
        data.statistics(Mixed(np.zeros((3, 1, 1, 1), np.uint8)))


@pytest.mark.parametrize("dtype, warned", [(np.uint16, True), (np.uint8, False), (np.float32, False)])
def test_a_small_part_of_a_types_range_is_warned_of(dtype, warned, caplog):
    images = np.linspace(0, 250, 4 * 25).reshape(4, 5, 5, 1).astype(dtype)
    data.statistics(images)
    assert ("give the range of all: config.data.value_range=(0, 255)" in caplog.text) == warned
    caplog.clear()
    data.statistics(images, value_range=(0.0, 250.0))
    assert not caplog.text


def test_a_channel_of_one_value_and_one_without_any():
    flat = np.full((3, 4, 4, 1), 7, np.uint16)
    found = data.statistics(flat)
    assert (found["value_range"], found["mean"], found["std"]) == ((7.0, 8.0), (0.0,), (1.0,))
    with pytest.raises(ValueError, match="channel 0 has no value that is a measurement"):
        data.statistics(flat.astype(np.float32) * np.float32(np.nan))

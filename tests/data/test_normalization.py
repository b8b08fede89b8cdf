"""From images of any type to what a network is given: values known beforehand, for each type."""

import jax
import numpy as np
import pytest

from ssl_jax.config.schema import DataConfig
from ssl_jax.data.formats import UndecodableImage
from ssl_jax.data.normalization import DTYPES, Normalization
from ssl_jax.data.sources import ArraySource
from ssl_jax.data.uniform import Uniform
from ssl_jax.keys import keys_of


@pytest.mark.parametrize(
    "dtype, value_range, images, unit",
    [
        ("uint8", (), [0, 51, 255], [0.0, 0.2, 1.0]),
        ("uint16", (), [0, 13107, 65535], [0.0, 0.2, 1.0]),
        ("uint16", (0, 4095), [0, 819, 4095, 65535], [0.0, 0.2, 1.0, 1.0]),
        ("int16", (), [-32768, 32767], [0.0, 1.0]),
        ("int16", (-1000, 1000), [-2000, -1000, 0, 500, 3000], [0.0, 0.0, 0.5, 0.75, 1.0]),
        ("float32", (), [0.25, 1.5, -0.5], [0.25, 1.0, 0.0]),
        ("float32", (-2.0, 2.0), [-2.0, 0.0, 1.0, 9.0], [0.0, 0.5, 0.75, 1.0]),
    ],
)
def test_each_type_becomes_its_range(dtype, value_range, images, unit):
    images = np.array(images, dtype).reshape(1, 1, -1, 1)
    normalization = Normalization((0.5,), (0.25,), tuple(map(float, value_range)), dtype)
    found = jax.jit(normalization.unit)(images)
    np.testing.assert_allclose(np.ravel(found), unit, atol=1e-6)
    given = jax.jit(normalization)(images)
    assert given.dtype == np.float32
    np.testing.assert_allclose(np.ravel(given), (np.array(unit) - 0.5) / 0.25, atol=1e-5)
    np.testing.assert_array_equal(np.ravel(normalization.to_uint8(images)), np.rint(255 * np.array(unit)))
    np.testing.assert_array_equal(normalization.undone(given), normalization.to_uint8(images))


def test_each_channel_may_have_its_range():
    normalization = Normalization((0.0, 0.0), (1.0, 1.0), (0.0, 100.0, 1000.0, 3000.0), "uint16")
    images = np.array([[50, 1000], [100, 2000], [200, 4000]], np.uint16).reshape(1, 1, 3, 2)
    np.testing.assert_allclose(normalization(images)[0, 0], [[0.5, 0.0], [1.0, 0.5], [1.0, 1.0]])


def test_floats_in_unit_range_are_taken_for_integers_only():
    image = np.array([[[0.25], [0.5]]], np.float32)[None]
    np.testing.assert_array_equal(Normalization((0.0,), (1.0,), (0.0, 4095.0), "uint16").unit(image), image)
    with pytest.raises(ValueError, match=r"must be uint16, or floats in 0\.\.1, got uint8"):
        Normalization((0.0,), (1.0,), (), "uint16").unit(image.astype(np.uint8))
    with pytest.raises(ValueError, match="must be float32, got uint8"):
        Normalization((0.0,), (1.0,), (), "float32").unit(image.astype(np.uint8))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"std": (0.5, 0.5)}, "1 means need as many deviations"),
        ({"dtype": "float64"}, "dtype must be one of uint8, uint16, int16, float32, got 'float64'"),
        ({"value_range": (0.0, 1.0, 2.0)}, "of each of the 1 channels"),
        ({"value_range": (1.0, 1.0)}, "low < high"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Normalization(**{"mean": (0.5,), "std": (0.5,), **options})


def test_missing_values_become_the_mean_of_their_channel():
    """In units of the image: low + mean * (high - low), rounded for integers; nothing else changes."""
    image = np.array([[[np.nan, 1.0], [2.0, np.inf], [3.0, 4.0]]], np.float32)
    normalization = Normalization((0.5, 0.25), (1.0, 1.0), (0.0, 8.0), "float32")
    np.testing.assert_array_equal(normalization.conform(image), [[[4.0, 1.0], [2.0, 2.0], [3.0, 4.0]]])
    image = np.array([[[-9999], [10]]], np.int16)
    normalization = Normalization((0.3,), (1.0,), (0.0, 100.0), "int16", nodata=(-9999.0,))
    found = normalization.conform(image)
    np.testing.assert_array_equal(found, [[[30], [10]]])
    assert found.dtype == np.int16


def test_a_source_of_mixed_images_is_read_in_one_type_or_says_why_not():
    """A type that holds the values exactly takes them in; another one is refused with the remedy."""
    images = [np.full((2, 2, 1), value, dtype) for value, dtype in ((200, np.uint8), (-5, np.int16), (0.5, np.float32))]

    class Mixed(ArraySource):
        def read(self, index):
            return images[index], -1

    source = Mixed(np.zeros((3, 2, 2, 1), np.uint8))
    read = Uniform(source, Normalization((0.5,), (0.5,), (-100.0, 300.0), "int16"))
    assert [read[k].dtype for k in (0, 1)] == [np.int16] * 2
    assert [int(read[k][0, 0, 0]) for k in (0, 1)] == [200, -5]
    with pytest.raises(UndecodableImage, match=r"2: its values are float32, which the int16 .* set config.data.dtype"):
        read.read(2)
    with pytest.raises(UndecodableImage, match="it has 1 channels, and the others have 2"):
        Uniform(source, Normalization((0.5, 0.5), (0.5, 0.5))).read(0)
    assert (len(read), read.name, read.digest()) == (3, source.name, source.digest())


def test_the_config_knows_the_same_types():
    (limit,) = keys_of(DataConfig)["dtype"].limits
    assert limit.choices == ("", *DTYPES)

import numpy as np
import pytest

from ssl_jax.data import distribution
from ssl_jax.data.distribution import KEPT, Table
from ssl_jax.data.inspection import scaling


def values_of(dtype, shape, rng):
    if dtype == "float32":
        return (1e6 + rng.normal(size=shape)).astype(np.float32)  # where squares minus squared mean would be lost
    ends = np.iinfo(dtype)
    return np.clip(rng.normal((ends.max + ends.min) / 2, ends.max / 4, shape), ends.min, ends.max).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_parts_of_many_images_have_the_statistics_of_all_pixels(dtype, monkeypatch):
    monkeypatch.setattr(distribution, "CHUNK", 500)  # so that an image has several chunks, the last one smaller
    rng = np.random.default_rng(0)
    images = [values_of(dtype, (rng.integers(20, 60), 31, 2), rng) for _ in range(9)]
    measured = [distribution.measure(image) for image in images]
    for channel in range(2):
        part = distribution.merge([parts[channel] for parts in measured])
        values = np.concatenate([image[..., channel].ravel() for image in images]).astype(np.float64)
        assert part.count == len(values)
        assert len(part.table.values) < KEPT  # so that floats, too, are all there
        np.testing.assert_array_equal(np.repeat(part.table.values, part.table.counts), np.sort(values))
        mean, deviation = distribution.mean_and_deviation(part.table)
        np.testing.assert_allclose([mean, deviation], [values.mean(), values.std()], rtol=1e-12)
        if dtype == "float32":
            np.testing.assert_allclose([part.mean, np.sqrt(part.squares / part.count)], [mean, deviation], rtol=1e-9)
        expected = np.percentile(values, (1, 50, 99), method="inverted_cdf")
        np.testing.assert_array_equal(distribution.percentiles(part.table, (1, 50, 99)), expected)


def test_many_floats_are_kept_in_little_memory():
    rng = np.random.default_rng(0)
    images = [rng.gamma(1.0, size=(400, 300, 1)).astype(np.float32) for _ in range(8)]
    for image in images:
        image[:20] = -9999.0
        image[20, 0], image[20, 1] = np.nan, np.inf
    part = distribution.merge([distribution.measure(image)[0] for image in images])
    values = np.concatenate([image.ravel() for image in images])
    known = np.sort(values[np.isfinite(values)]).astype(np.float64)
    assert len(part.table.values) <= KEPT
    assert (part.nan, part.infinite, part.count) == (8, 8, len(known))
    np.testing.assert_allclose(part.mean, known.mean(), rtol=1e-12)
    np.testing.assert_allclose(part.squares, ((known - known.mean()) ** 2).sum(), rtol=1e-9)
    # The common value is counted exactly, and so are the ends, with it and without it.
    assert part.table.values[0] == -9999.0 and part.table.counts[0] == 8 * 20 * 300
    assert part.table.values[1] == known[known > -9999][0] and part.table.values[-1] == known[-1]
    for share in (10, 50, 90, 99, 99.99):
        (found,) = distribution.percentiles(part.table, (share,))
        assert abs(np.searchsorted(known, found) / len(known) - share / 100) < 1e-3


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_histograms_count_every_value_in_its_bin(dtype):
    image = values_of(dtype, (50, 40, 1), np.random.default_rng(1))
    table = distribution.measure(image)[0].table
    found = distribution.histogram(table, float(table.values[0]), float(table.values[-1]))
    assert len(found.counts) <= distribution.BINS and len(found.edges) == len(found.counts) + 1
    assert sum(found.counts) == image.size
    expected, _ = np.histogram(image.astype(np.float64), np.array(found.edges))
    np.testing.assert_array_equal(found.counts, expected)
    if dtype != "float32":
        assert len(set(np.diff(found.edges))) == 1 and np.diff(found.edges)[0] == int(np.diff(found.edges)[0])


def test_a_histogram_counts_what_is_beyond_in_its_end_bins():
    found = distribution.histogram(Table(np.array([-50.0, 0.1, 0.9, 70.0]), np.array([1, 2, 3, 4])), 0.0, 1.0)
    assert (found.counts[0], found.counts[-1], sum(found.counts)) == (1, 4, 10)


def test_moments_are_of_the_clipped_unit_range():
    table = Table(np.array([0, 10, 20]), np.array([1, 2, 1]))
    assert distribution.moments(table, 0, 20) == (0.5, pytest.approx(np.sqrt(1 / 8)))
    assert distribution.moments(table, 0, 10) == (0.75, pytest.approx(np.sqrt(3 / 16)))  # 0, 1, 1, 1


def table_of(*pairs):
    values, counts = zip(*pairs, strict=True)
    return Table(np.array(values), np.array(counts))


def between(low, high, other):
    """Twenty values of low..high, ten times each, and another value."""
    return table_of(*sorted([(value, 10) for value in np.linspace(low, high, 20).tolist()] + [other]))


@pytest.mark.parametrize(
    "dtype, table, expected",
    [
        ("float32", between(0.5, 1.5, (-9999.0, 20)), -9999.0),
        ("int16", between(5, 900, (-32768, 20)), -32768.0),
        ("uint16", between(100, 900, (65535, 20)), 65535.0),
        ("uint16", between(100, 900, (0, 9000)), None),  # common, but not apart
        ("float32", between(0.5, 1.5, (-9999.0, 1)), None),  # apart, but rare
        ("float32", between(0.5, 900.0, (500.0, 9000)), None),  # between the others
        ("uint8", between(0, 50, (255, 20)), None),
        ("uint16", table_of((0, 50), (1, 20), (65535, 50)), None),  # classes
    ],
)
def test_nodata_is_common_and_apart(dtype, table, expected):
    assert scaling.nodata(dtype, table) == expected


@pytest.mark.parametrize(
    "dtype, tables, expected",
    [
        ("uint8", [table_of((0, 1), (255, 1))], ()),
        ("uint8", [table_of((0, 5), (19, 5))], (0.0, 19.0)),
        ("uint16", [table_of((3, 1), (4000, 1)), table_of((9, 1), (1500, 1))], (0.0, 4095.0)),
        ("uint16", [table_of((0, 1), (1023, 1))], (0.0, 1023.0)),
        ("uint16", [table_of((0, 1), (200, 1))], (0.0, 200.0)),
        ("uint16", [table_of((0, 1), (9000, 1)), table_of((5, 1), (7000, 1))], (0.0, 9000.0, 5.0, 7000.0)),
        ("int16", [table_of((-1024, 1), (3071, 1))], (-1024.0, 3071.0)),
        ("float32", [table_of((0.25, 1), (0.5, 1))] * 3, (0.25, 0.5)),
        ("float32", [table_of((7.0, 9))], (7.0, 8.0)),
        ("float32", [table_of((0.0, 5000), (1.0, 5000), (90.0, 1))], (0.0, 1.0)),  # without the outlier
    ],
)
def test_value_range(dtype, tables, expected):
    assert scaling.value_range(dtype, tables) == expected

import dataclasses
import threading
import weakref

import numpy as np
import pytest

from ssl_jax import data
from ssl_jax.data.formats import UndecodableImage
from ssl_jax.data.inspection import look
from tests.data.inspection.sources import Made, of


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_statistics_are_those_of_all_pixels(dtype):
    rng = np.random.default_rng(0)
    shapes = [(30 + 3 * k, 50 - k, 4) for k in range(12)]
    if dtype == "float32":
        images = [rng.normal(3.0, 2.0, shape).astype(dtype) for shape in shapes]
    else:
        ends = np.iinfo(dtype)
        images = [rng.integers(ends.min, ends.max, shape, dtype) for shape in shapes]
    (split,) = data.inspect(of(images)).splits
    (kind,) = split.kinds
    assert (kind.dtype, kind.count, split.count, split.read) == (dtype, 12, 12, 12)
    for number, channel in enumerate(kind.channels):
        values = np.concatenate([image[..., number].ravel() for image in images]).astype(np.float64)
        found = [channel.least, channel.greatest, channel.mean, channel.std]
        np.testing.assert_allclose(found, [values.min(), values.max(), values.mean(), values.std()], rtol=1e-9)
        expected = np.percentile(values, (1, 99), method="inverted_cdf")
        np.testing.assert_allclose([channel.p1, channel.p99], expected, rtol=1e-9)
        common, counts = np.unique(values, return_counts=True)
        assert channel.commonest_share == counts.max() / len(values)
        assert channel.commonest == common[counts.argmax()]
        assert sum(channel.histogram.counts) == len(values)
        low, high = np.reshape(kind.value_range or (0, 255), (-1, 2))[number if len(kind.value_range) > 2 else 0]
        unit = np.clip((values - low) / (high - low), 0, 1)
        np.testing.assert_allclose([kind.mean[number], kind.std[number]], [unit.mean(), unit.std()], rtol=1e-3)
        if dtype != "float32":
            assert channel.used == (values.max() - values.min()) / (int(ends.max) - int(ends.min))
    assert split.sizes is not None
    assert split.sizes.least == (30, 39) and split.sizes.most == (63, 50) and split.sizes.median == (45, 44)


def test_missing_values_are_counted_and_left_out():
    images = [np.random.default_rng(k).normal(size=(20, 20, 2)).astype(np.float32) for k in range(5)]
    known = np.concatenate([image[5:, :, 0].ravel() for image in images]).astype(np.float64)
    for image in images:
        image[:5, :, 0], image[:2, :, 1], image[2, :10, 1] = -9999.0, np.nan, np.inf
    (kind,) = data.inspect(of(images)).splits[0].kinds
    first, second = kind.channels
    assert first.nodata == (-9999.0, pytest.approx(0.25)) and second.nodata is None and kind.nodata == (-9999.0,)
    np.testing.assert_allclose(
        [first.least, first.greatest, first.mean, first.std], [known.min(), known.max(), known.mean(), known.std()]
    )
    assert (second.nan, second.infinite) == (0.1, 0.025)


def test_what_cannot_be_read_is_named_and_stops_nothing():
    good = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)

    def make(index):
        match index:
            case 1:
                raise UndecodableImage("image 1", "cut short")
            case 2:
                raise RuntimeError("boom")
            case 3:
                return good.astype(np.float64)
            case 4:
                return good[..., 0]
            case 5:
                return np.zeros((0, 9, 3), np.uint8)
        return good + np.uint8(index)

    split = data.inspect(Made(8, make)).splits[0]
    assert split.unreadable == {
        "image 1": "cut short",
        "image 2": "RuntimeError: boom",
        "image 3": "not an image [height, width, channels] of uint8, uint16, int16, float32, but float64 [9, 9, 3]",
        "image 4": "not an image [height, width, channels] of uint8, uint16, int16, float32, but uint8 [9, 9]",
        "image 5": "it has no pixels, [0, 9, 3]",
    }
    assert split.read == 3

    def broken(index):
        raise UndecodableImage(str(index), "gone")

    found = data.inspect(Made(3, broken))
    assert found.splits[0].kinds == () and found.samples == () and found.flags == ()
    assert [advice.warning for advice in found.advice] == [True]


def test_images_without_a_finite_value():
    found = data.inspect(of([np.full((4, 4, 2), np.nan, np.float32)] * 3))
    (kind,) = found.splits[0].kinds
    assert kind.mean == kind.value_range == () and kind.channels[0].nan == 1.0


def test_few_images_are_in_memory_at_a_time():
    alive, most, lock = 0, 0, threading.Lock()

    def gone():
        nonlocal alive
        with lock:
            alive -= 1

    def make(index):
        nonlocal alive, most
        image = np.full((64, 64, 3), index % 200, np.uint8)
        weakref.finalize(image, gone)  # a view of it keeps it
        with lock:
            alive, most = alive + 1, max(most, alive + 1)
        return image

    split = data.inspect(Made(600, make), threads=3).splits[0]
    assert split.read == 600 and alive == 0
    assert most <= 3 + 3  # one in each thread, and one that a thread has just let go


def test_kinds_are_measured_apart_and_mixtures_are_advised_on():
    gray = [np.full((8, 8, 1), k, np.uint8) for k in range(3)]
    color = [np.full((8, 8, 3), (k, 100, 200), np.uint8) for k in range(5)]
    found = data.inspect(of(gray + color))
    assert [(kind.dtype, len(kind.channels), kind.count) for kind in found.splits[0].kinds] == [
        ("uint8", 3, 5),
        ("uint8", 1, 3),
    ]
    assert "--config.data.channels=3" in found.flags


def test_labels_groups_and_some_images_only():
    images = [np.full((8, 8, 1), k, np.uint8) for k in range(30)]
    source = of(images, labels=[0] * 20 + [2] * 8 + [-1] * 2, class_names=("a", "b", "c"), groups=np.arange(30) // 10)
    found = data.inspect(source, images=7)
    split = found.splits[0]
    assert (split.count, split.read) == (30, 7)
    assert split.labels is not None and split.labels.counts == (("a", 20), ("b", 0), ("c", 8))
    assert split.labels.unlabeled == 2 and split.labels.majority == ("a", 20 / 28)
    assert split.groups is not None and dataclasses.astuple(split.groups) == (3, 10, 10, 10)
    assert [sample.name for sample in found.samples] == [f"image {k}" for k in (0, 4, 9, 14, 19, 24, 29)]
    assert found.samples[0].label == "a" and found.samples[-1].label == ""


def test_pictures_show_the_bands_that_are_asked_for():
    image = np.zeros((10, 10, 5), np.uint16)
    image[..., 4], image[:, 5:, 1] = np.arange(100).reshape(10, 10), 1000
    sample = data.inspect(of([image, image]), bands=(4, 1, 0)).samples[0].picture
    assert sample.shape == (10, 10, 3) and sample.dtype == np.uint8
    assert sample[0, 0].tolist() == [0, 0, 0] and sample[9, 9].tolist() == [255, 255, 0]
    with pytest.raises(ValueError, match=r"bands must be one channel, or three.*got \(1, 2\)"):
        data.inspect(of([image]), bands=(1, 2))


def test_the_order_of_threads_changes_nothing():
    images = [np.random.default_rng(k).normal(size=(40, 40, 1)).astype(np.float32) for k in range(80)]
    one, many = (data.inspect(of(images), threads=threads).splits for threads in (1, 7))
    assert one == many
    assert len(images) > look.TOGETHER  # so that parts were merged on the way

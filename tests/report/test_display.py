"""Images of any number of bands on a page."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from ssl_jax.report.display import displayed
from ssl_jax.report.read import Record

RNG = np.random.default_rng(0)


def record(channels, dtype="uint16"):
    def images(*shape):
        return RNG.integers(20, 60, (*shape, 6, 5, channels), np.uint8) + np.arange(channels, dtype=np.uint8) * 10

    return Record(
        workdir=Path("run"),
        config={"data": {"dtype": dtype}},
        facts={},
        evaluation={},
        metrics=[],
        views={"original": images(4), "views": images(4, 2)},
        pictures={"Masked": images(4), "Mask": np.zeros((4, 6, 5, 1), np.uint8)},
        embeddings={"images": images(9), "features": np.ones((9, channels), np.float32)},
        patches={"images": images(2), "features/random": np.zeros((2, 6, 5, 3), np.uint8)},
        predictions={},
        unreadable={},
    )


@pytest.mark.parametrize("bands", [(4, 0, 2), (3,)])
def test_chosen_bands_are_stretched_alike_wherever_images_are_shown(bands):
    given = record(5)
    shown = displayed(given, bands, (0, 100))
    low, high = (end(given.views["original"][..., bands], axis=(0, 1, 2)) for end in (np.min, np.max))

    def expected(made):
        return np.clip(np.rint((made[..., bands] - low.astype(float)) / (high - low) * 255), 0, 255)

    assert shown.views["original"].min() == 0 and shown.views["original"].max() == 255
    for of in ("views", "pictures", "embeddings", "patches"):
        for name, made in getattr(given, of).items():
            after = getattr(shown, of)[name]
            if made.shape[-1] == 5 and made.dtype == np.uint8:
                np.testing.assert_array_equal(after, expected(made))
            else:
                np.testing.assert_array_equal(after, made)


@pytest.mark.parametrize("channels, shown", [(1, 1), (2, 1), (3, 3), (5, 3)])
def test_the_first_bands_are_shown_by_default(channels, shown):
    assert displayed(record(channels)).views["views"].shape[-1] == shown


@pytest.mark.parametrize("channels", [1, 3])
def test_photos_are_shown_as_they_are_and_deep_images_stretched(channels):
    photo = record(channels, "uint8")
    np.testing.assert_array_equal(displayed(photo).views["original"], photo.views["original"])
    assert displayed(photo, stretch=(0, 100)).views["original"].max() == 255
    deep = displayed(record(channels, "uint16")).views["original"]
    assert deep.min() == 0 and deep.max() == 255


@pytest.mark.parametrize(
    "bands, stretch, said",
    [
        ((5,), None, "of 0 to 4; got 5"),
        ((0, 1), None, "one, or three for red, green and blue"),
        ((), (90, 10), "the lower one first, in 0..100; got 90,10"),
        ((), (5,), "two percentiles, .* got 5"),
        ((), (0, 101), "got 0,101"),
    ],
)
def test_what_cannot_be_shown_is_refused(bands, stretch, said):
    with pytest.raises(ValueError, match=said):
        displayed(record(5), bands, stretch)


def test_a_run_without_pictures_has_nothing_to_show():
    empty = dataclasses.replace(record(5), views={}, embeddings={})
    assert displayed(empty, (7,)) is empty

"""Warnings of images that are shrunk or enlarged a lot."""

import logging

import numpy as np
import pytest

from ssl_jax import config as configs
from ssl_jax import data
from ssl_jax.training import build, resolution
from ssl_jax.training.build import Given
from ssl_jax.training.measuring import measured


@pytest.fixture
def said(caplog):
    """(images, changes of config.data, changes of the views) -> what is logged."""

    def say(images, of_data=(), of_views=()):
        config = configs.get_config("simclr:folder")
        config.data.update(dict(of_data))
        for view in config.augment.values():
            with view.unlocked():
                view.update(dict(of_views))
        parsed = configs.parse(measured(config, data.as_source(images)))
        schedule = build.schedule(parsed, 256, 0)
        made = build.training(parsed, schedule, Given())
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            resolution.warn(parsed, data.as_source(images), made.augmentations)
        return caplog.text

    return say


def zeros(side, count=3):
    return np.zeros((count, side, side, 3), np.uint8)


def test_images_about_as_large_as_the_views_need_no_warning(said):
    for side in (40, 64, 200):
        assert said(zeros(side)) == ""
        assert said(zeros(side), {"memory_bytes": 0}) == ""


def test_images_that_memory_keeps_small(said):
    text = said(zeros(640))
    assert "its images of about 640 x 640 pixels are shrunk 10 times to 64 x 64 in memory" in text
    assert "config.data.window=64" in text and "raise config.data.image_size" in text
    assert said(zeros(640), {"image_size": (320, 320)}) == ""


def test_images_whose_crops_are_shrunk(said):
    text = said(zeros(640), {"memory_bytes": 0})
    assert "are shrunk 10 times to 64 x 64, so" in text and "image_size" not in text
    assert said(zeros(640), {"memory_bytes": 0}, {"crop_area": (0.01, 0.1)}) == ""  # 202 pixels become 64
    assert "shrunk 10 times" in said(zeros(640), {"memory_bytes": 0}, {"shorter_side": 64})


def test_windows_are_what_counts(said):
    assert said(data.windows(zeros(640), 64)) == ""
    assert "about 512 x 512 pixels are shrunk 8 times" in said(data.windows(zeros(640), 512))


def test_windows_that_decode_whole_images_again_and_again(said):
    class Photos(data.Source):
        name, labels = "photos", None

        def __len__(self):
            return 4

        def read(self, index):
            return zeros(100)[0], -1

    source = data.Windows(Photos(), 64, memory_bytes=4 * 30_000)
    assert source.decoded_bytes == 4 * 30_000 and said(source) == ""
    text = said(data.Windows(Photos(), 64, memory_bytes=4 * 30_000 - 1))
    assert "photos: images whose format gives no windows" in text and "save them as tiled TIFF" in text


def test_views_finer_than_the_pixels(said):
    text = said(zeros(20))
    assert "are enlarged at least 3.2 times to views of 64 x 64" in text and "config.augment's size" in text
    assert "enlarged at least 3.58 times" in said(zeros(20), (), {"crop_area": (0.1, 0.8)})


def test_images_that_cannot_be_read_are_left_to_the_pipeline(said, tmp_path):
    (tmp_path / "a.png").write_bytes(b"nothing")
    assert resolution._sizes(data.folder(tmp_path)) == []

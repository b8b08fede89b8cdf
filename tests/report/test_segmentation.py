"""The page about a segmenter."""

import base64
import dataclasses

import cv2
import numpy as np
import pytest

from ssl_jax import report
from ssl_jax.report.palette import DARK, LIGHT
from ssl_jax.report.segmentation import Segmented
from tests.report.pages import ATTACK, CHROMIUM, Page, browse, check

NAMES = ("background", ATTACK, "n" * 90, *(f"kind {k}" for k in range(9)))


def segmented(channels=3):
    """Of 12 classes, the second of which no pixel has. Truth and prediction have one class in each image, and pixels
    that do not count."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 40, 56, channels), dtype=np.uint8)
    truth = np.broadcast_to(np.array([0, 2, 3, 11], np.uint8)[:, None, None], (4, 40, 56)).copy()
    truth[:, :8] = 255
    classes = {name: {"iou": 20.0 + k, "percent": 40.0 if k == 0 else 6.0} for k, name in enumerate(NAMES)}
    classes[ATTACK] = {"iou": None, "percent": 0.0}
    scores = dict(head="conv", image_size=[40, 56], learning_rate=0.01, steps=300, train_images=1200, test_images=300)
    scores |= dict(images_without_mask=7, mean_iou=43.21, pixel_accuracy=61.5, classes=classes)
    scores["majority"] = {"class": "background", "percent": 40.0, "mean_iou": 3.6}
    facts = {"model": {"name": "vit_tiny_patch16_224"}, "method": "dino"}
    predicted = np.where(truth == 255, 0, truth)
    return Segmented(
        "somewhere/wings", NAMES, scores, facts, [f"{ATTACK} {k}" for k in range(4)], images, truth, predicted
    )


def written(found, tmp_path):
    return Page(found, lambda one: report.write_segmentation(one, tmp_path / "report.html"))


def pixels(uri):
    data = np.frombuffer(base64.b64decode(uri.removeprefix("data:image/png;base64,")), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_UNCHANGED)[..., ::-1]


def rgb(color):
    return list(bytes.fromhex(color[1:]))


def test_the_page_is_well_formed_and_says_what_was_found(tmp_path):
    page = written(segmented(), tmp_path)
    assert page.open == [] and not [tag for tag, _ in page.elements if tag in ("script", "link")]
    for said in ("43.2%", "61.5%", "3.6%", "40.0%", "vit_tiny_patch16_224, dino, frozen", "7 without a mask"):
        assert said in page.text
    assert "<h1>wings</h1>" in page.source
    assert "1,200 for training, 300 for testing" in page.text and "convolutional" in page.text
    assert page.text.count(ATTACK) >= 6  # a class, in the table and the key, and four images
    rows = [attributes for tag, attributes in page.elements if tag == "tr"]
    assert len(rows) == 1 + len(NAMES) + 1
    assert len([tag for tag, attributes in page.elements if attributes.get("class") == "swatch"]) == 2 * len(NAMES)


def test_masks_have_the_colors_of_their_classes_on_light_and_dark_pages(tmp_path):
    page = written(segmented(), tmp_path)
    light = [attributes["src"] for tag, attributes in page.elements if tag == "img"]
    dark = [attributes["srcset"] for tag, attributes in page.elements if tag == "source"]
    assert len(light) == 12 and len(dark) == 8
    truths, predictions = light[1::3], light[2::3]
    # The largest class is gray; the others begin with c0, and after ten colors again.
    for uris, palette in ((truths, LIGHT), (dark[::2], DARK)):
        for uri, color in zip(uris, ("rest", "c1", "c2", "c0"), strict=True):
            found = pixels(uri)
            assert found.shape == (40, 56, 3)
            np.testing.assert_array_equal(found[:8], np.broadcast_to(rgb(palette["paper"]), (8, 56, 3)))
            np.testing.assert_array_equal(found[8:], np.broadcast_to(rgb(palette[color]), (32, 56, 3)))
    assert pixels(predictions[1])[0, 0].tolist() == rgb(LIGHT["rest"])


def test_a_head_that_is_no_better_than_the_baseline_is_called_so(tmp_path):
    found = segmented()
    assert "no better" not in written(found, tmp_path).text
    worse = {**found.scores, "mean_iou": 3.6}
    assert "The head is no better than that." in written(dataclasses.replace(found, scores=worse), tmp_path).text


def test_gray_images_and_a_backbone_of_no_run(tmp_path):
    page = written(dataclasses.replace(segmented(channels=1), facts={}), tmp_path)
    assert "frozen" in page.text and page.open == []


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: install chromium or google-chrome")
def test_the_page_fits_narrow_and_wide_windows(tmp_path):
    check(*browse(written(segmented(), tmp_path).source, tmp_path))

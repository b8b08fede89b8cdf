"""The page about a retrieval."""

import numpy as np
import pytest

from ssl_jax import report
from ssl_jax.report.retrieval import Neighbor, Query, Retrieval
from tests.report.pages import ATTACK, CHROMIUM, Page, browse, check

BACKBONE = {
    "file": f"weights/{ATTACK.replace('/', '')}.safetensors",
    "model": {"name": "vit_tiny", "depth": 2},
    "image_size": [32, 48],
    "channels": 5,
    "dtype": "uint16",
    "value_range": [0, 4000],
    "mean": [0.5] * 5,
    "std": [0.25] * 5,
}


def found(side=80, **changes):
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (side, side // 2 + 20 * i, 3), np.uint8) for i in range(3)]
    neighbors = [
        Neighbor(pictures[0], f"{ATTACK} {'n' * 90}", 0.98765, ATTACK, True),
        Neighbor(pictures[1], "folder/dog.png", 0.5, "d" * 60, False),
        Neighbor(None, "gone.png", -0.25, "", None),
    ]
    queries = [Query(pictures[2], f"query {i}", "cat", i == 0, neighbors) for i in range(2)]
    gallery = {"name": "/data/" + "g" * 90, "kind": "FolderSource", "digest": "0123456789ab", "images": 1234}
    given = dict(gallery=gallery, queried="/data/queries", queries=queries, total=2, k=3, backbone=BACKBONE)
    return Retrieval(**{**given, **changes})


def write(tmp_path, made):
    return Page(made, lambda made: report.write_retrieval(made, tmp_path / "found.html"))


def test_the_page_is_well_formed_and_says_what_was_found(tmp_path):
    page = write(tmp_path, found())
    assert page.open == [] and not {"script", "link", "iframe"} & {tag for tag, _ in page.elements}
    assert ATTACK in page.text and "0.988" in page.text and "-0.250" in page.text
    images = [attributes["src"] for tag, attributes in page.elements if tag == "img"]
    assert len(images) == 2 * 3 and all(source.startswith("data:image/webp;base64,") for source in images)
    assert page.text.count("cannot be read again") == 2
    assert "1 of these queries is in the gallery, too; no image is its own neighbor." in page.text
    assert "1,234 images of" in page.text and "vit_tiny, depth 2" in page.text and "32 × 48 × 5, uint16" in page.text
    assert "mean 0.5 0.5 0.5 0.5 …, deviation 0.25 0.25 0.25 0.25 …, values 0 4000" in page.text
    for name in ("pretrained", "alarm"):
        assert page.source.count(f"--{name}: #") == 2  # in light and in dark


def test_scores_are_said_where_there_are_labels(tmp_path):
    said = write(tmp_path, found(precision=62.5, average_precision=41.25, scored=2)).text
    assert "Of the 3 images most similar to a query, 62.5% are of its class, a mean over 2 queries." in said
    assert "the mean average precision is 41.2%" in said
    assert "of its class" not in write(tmp_path, found()).text


def test_what_is_left_out_is_said(tmp_path):
    said = write(tmp_path, found(total=2000, k=50, note="By windows.")).text
    assert "Shown are 2 of 2,000 queries, at equal distances" in said
    assert "Shown are the first 3 of 50 neighbors" in said and "By windows." in said


def test_small_images_keep_their_pixels(tmp_path):
    page = write(tmp_path, found(side=20))
    assert {attributes["class"] for tag, attributes in page.elements if tag == "img"} == {" pixelated"}
    assert "data:image/webp" not in page.source


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: install chromium or google-chrome")
def test_the_page_fits_narrow_and_wide_windows(tmp_path):
    made = found(precision=62.5, average_precision=41.25, scored=2)
    check(*browse(report.write_retrieval(made, tmp_path / "found.html").read_text(), tmp_path))

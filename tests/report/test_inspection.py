"""The page about a data set."""

import json

import numpy as np
import pytest

from ssl_jax import data, report
from ssl_jax.data.formats import UndecodableImage
from ssl_jax.report import inspection as pages
from tests.data.inspection.sources import Made, of, scene
from tests.report.pages import ATTACK, CHROMIUM, Page, browse, check


def inspected(tmp_path, kind):
    """ "full": all sections have something to say, with names that are long and hostile. "bands": of 13 channels."""
    if kind == "bands":
        images = [(4000 * scene(seed, channels=13)).astype(np.uint16) for seed in range(8)]
        return data.inspect(of(images, name="n" * 120))
    if kind == "empty":
        return data.inspect(Made(3, unreadable))
    names = (ATTACK, "n" * 90, "cat")
    pictures = [(255 * scene(seed, 40 + seed, 60)).astype(np.uint8) for seed in range(20)]

    class Named(Made):
        def image_name(self, index):
            return f"{ATTACK} {'n' * 120} {index}"

    def make(index):
        return unreadable(index) if index == 5 else pictures[index % 17]

    train = Named(20, make, labels=np.arange(20) % 3, class_names=names, groups=np.arange(20) // 4, name=ATTACK)
    test = Named(4, make, labels=np.arange(4) % 3, class_names=names, groups=np.arange(4))
    return data.inspect(train, held_out={"test": test})


def unreadable(index):
    raise UndecodableImage(f"{ATTACK} {'n' * 200}", f"{ATTACK} {'long ' * 60}")


@pytest.mark.parametrize("kind", ["full", "bands", "empty"])
def test_the_page_is_well_formed_and_holds_what_was_found(tmp_path, kind):
    found = inspected(tmp_path, kind)
    page = Page(found, lambda one: report.write_inspection(one, tmp_path / "inspect.html", start="ssl_jax train"))
    assert page.open == []
    assert not [tag for tag, _ in page.elements if tag in ("script", "link")]
    sources = [attributes["src"] for tag, attributes in page.elements if tag == "img"]
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert len(sources) >= len(found.samples)
    for advice in found.advice:
        assert advice.says in page.text and advice.because in page.text
    anchors = {attributes["href"][1:] for tag, attributes in page.elements if tag == "a"}
    assert anchors == {attributes["id"] for tag, attributes in page.elements if tag == "section"}
    assert ("ssl_jax train" in page.text) == (kind != "empty")
    if kind == "full":
        assert ATTACK in page.text and page.text.count("in train and test") == len(
            [group for group in (*found.equal, *found.near) if len(group.splits) > 1]
        )
    if kind == "bands":
        charts = [attributes for tag, attributes in page.elements if tag == "svg"]
        assert len(charts) >= 13
        assert "Channel 12" in page.text


def test_json_has_all_but_pictures(tmp_path):
    found = inspected(tmp_path, "full")
    read = json.loads(json.dumps(pages.plain(found), allow_nan=False))
    assert [split["count"] for split in read["splits"]] == [20, 4]
    assert read["splits"][0]["kinds"][0]["channels"][1]["mean"] == found.splits[0].kinds[0].channels[1].mean
    assert len(read["equal"]) == len(found.equal) and "pictures" not in read["equal"][0] and "samples" not in read
    assert [one["topic"] for one in read["advice"]] == [one.topic for one in found.advice]
    nothing = data.inspect(of([np.full((4, 4, 1), np.nan, np.float32)]))
    assert pages.plain(nothing)["splits"][0]["kinds"][0]["channels"][0]["mean"] is None


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: install chromium or google-chrome")
@pytest.mark.parametrize("kind", ["full", "bands", "empty"])
def test_the_page_fits_narrow_and_wide_windows(tmp_path, kind):
    path = report.write_inspection(inspected(tmp_path, kind), tmp_path / "inspect.html", start="ssl_jax train " * 30)
    check(*browse(path.read_text(), tmp_path))

"""The pages in headless Chromium."""

import shutil

import numpy as np
import pytest

from ssl_jax import report
from tests.report.pages import CHROMIUM, browse, check, edit

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: install chromium or google-chrome"),
]


def lengthen(workdir):
    """All that has a name gets a long one."""
    edit(workdir, "config.json", lambda config: config["data"].update(name="n" * 90))
    edit(workdir, "run.json", lambda facts: facts.update(skipped={"n" * 300: "long " * 60}, devices="d" * 90))
    edit(workdir, "evaluation.json", lambda scores: scores["pretrained"].update({"n" * 90: {"mean": 1.0}}))
    for name in ("embeddings", "predictions"):
        arrays = dict(np.load(workdir / "samples" / f"{name}.npz"))
        np.savez(workdir / "samples" / f"{name}.npz", **arrays | {"class_names": np.array(["n" * 80] * 3)})


@pytest.mark.parametrize("kind", ["full", "long names", "empty"])
def test_page_fits_narrow_and_wide_windows(measured, tmp_path, kind):
    if kind == "empty":
        measured = tmp_path / "empty"
        measured.mkdir()
    if kind == "long names":
        lengthen(measured)
    check(*browse(report.write(measured).read_text(), tmp_path))


@pytest.mark.parametrize("kind", ["full", "long names", "empty"])
def test_comparison_fits_narrow_and_wide_windows(measured, tmp_path, kind):
    if kind == "long names":
        lengthen(measured)
    runs = [measured]
    for number in range(1, 12):  # more than there are colors
        runs.append(tmp_path / (f"run {number}" if kind == "full" else f"{number}" * 60))
        if kind == "empty":
            runs[-1].mkdir()
        else:
            shutil.copytree(measured, runs[-1])
            edit(runs[-1], "config.json", lambda config, n=number: config["model"].update(depth=n))
    check(*browse(report.write_comparison(runs[kind == "empty" :]).read_text(), tmp_path))


def test_what_is_wrong_with_a_page_is_found(tmp_path):
    wrong = """<!doctype html><body><p style="width: 2000px">wide</p><div class="panel" style="width: 100px">
      <span style="position: absolute; left: 200px">beyond</span></div><script>console.error("oh")</script>
      <p style="position: absolute; top: 60px">one</p><p style="position: absolute; top: 61px">other</p>
      <img src="http://localhost:9/absent.png">"""
    (narrow, wide), console = browse(wrong, tmp_path)
    assert narrow["width"] == wide["width"] > 2000
    assert narrow["overlaps"] == [["one", "other"]]
    assert narrow["outside"] == ["beyond"]
    assert narrow["fetched"] == ["http://localhost:9/absent.png"]
    assert any("oh" in line for line in console)

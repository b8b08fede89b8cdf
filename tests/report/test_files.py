import contextlib
import io
import re
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from ssl_jax.cli.report import main
from ssl_jax.report import palette
from tests.report.conftest import finish_run, measure_run

CHARTS = {"loss", "knn", "scores", "labels-linear", "labels-finetune", "confusion", "map"}
HEALTH = {"embedding-spread", "effective-rank-rankme", "alignment", "uniformity", "gradient-norm", "waiting-for-data"}
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The files of a run that has everything, by name."""
    measured = measure_run(finish_run(tmp_path_factory.mktemp("written") / "a run"))
    drawn = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 3), dtype=np.uint8)
    np.savez(measured / "samples" / "pictures.npz", **{"image": drawn, "seen $x_": drawn, "n" * 90: drawn})
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main([str(measured), "--files"])
    paths = [line for line in printed.getvalue().splitlines() if "/pictures/" in line]
    found = {path.name: path for path in (measured / "pictures").iterdir()}
    assert sorted(paths) == sorted(map(str, found.values()))
    return found


def test_all_pictures_of_the_page_are_files(written):
    svgs = CHARTS | {f"health-{name}" for name in HEALTH}
    assert set(written) == {f"{name}.svg" for name in svgs} | {
        *("views.png", "drawn.png", "neighbors.png", "patches-features.png", "patches-attention.png")
    }
    for name in svgs:
        text = written[f"{name}.svg"].read_text(encoding="utf-8")
        root = ElementTree.fromstring(text)
        assert root.tag == f"{SVG}svg"
        box = [float(number) for number in root.get("viewBox").split()]
        assert [float(root.get("width")), float(root.get("height"))] == box[2:]
        assert "var(" not in text
        assert len(list(root.iter())) > 10
    assert palette.LIGHT["pretrained"] in written["loss.svg"].read_text()
    # Four originals and eight views in rows of three; a query and eight neighbors in each of three rows; eight images
    # above two networks' patches, and above the attention of two networks and two heads.
    sizes = {"views.png": (8, 3), "drawn.png": (3, 5), "neighbors.png": (3, 9)}
    sizes |= {"patches-features.png": (3, 8), "patches-attention.png": (5, 8)}
    for name, (rows, columns) in sizes.items():
        height, width = cv2.imread(str(written[name])).shape[:2]
        assert height == 180 * rows
        assert width == pytest.approx(180 * (columns + 1.4), abs=1)


def test_map_as_a_file_has_its_marks_and_colors(written):
    root = ElementTree.fromstring(written["map.svg"].read_text())
    ids = {element.get("id") for element in root.iter() if element.get("id")}
    uses = [element.get("href") for element in root.iter(f"{SVG}use")]
    assert len(uses) == 60
    assert {use.removeprefix("#") for use in uses} <= ids
    colors = re.findall(r"color: (#\w{6})", written["map.svg"].read_text())
    assert colors == [palette.LIGHT[f"c{i}"] for i in range(3)]


def test_images_are_in_the_grid_as_they_are(tmp_path):
    (tmp_path / "samples").mkdir()
    drawn = np.zeros((2, 8, 8, 3), np.uint8)
    drawn[0, :, :] = (250, 10, 60)
    drawn[1, :, :] = (20, 200, 90)
    np.savez(tmp_path / "samples" / "pictures.npz", image=drawn)
    main([str(tmp_path), "--files"])
    grid = cv2.cvtColor(cv2.imread(str(tmp_path / "pictures" / "drawn.png")), cv2.COLOR_BGR2RGB)
    for color in drawn[:, 0, 0]:
        assert (grid == color).all(axis=2).mean() > 0.15
    assert grid[0, 0].tolist() == [255, 255, 255]


def test_run_of_nothing_has_no_files(tmp_path, capsys):
    main([str(tmp_path), "--files"])
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "report.html"), ""]
    assert list((tmp_path / "pictures").iterdir()) == []

"""From weights and a gallery to the page and the ranks of query images."""

import base64
import csv
import json
import shutil

import cv2
import numpy as np
import pytest

from ssl_jax import weights
from ssl_jax.__main__ import main
from tests.evaluation.test_embedding import SIZE, network
from tests.report.pages import Page


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's directory with a small backbone."""
    small, path = network(), tmp_path_factory.mktemp("run")
    meta = {**small.facts, "image_size": [*SIZE], "channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3}
    weights.save_backbone(path, small.variables, meta)
    return path


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    """Of two classes, each of three images. The last of each class is a copy of its first."""
    root, rng = tmp_path_factory.mktemp("gallery"), np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir()
        for number in range(2):
            cv2.imwrite(str(root / name / f"{number}.png"), rng.integers(0, 256, (20, 24, 3), np.uint8))
        shutil.copy(root / name / "0.png", root / name / "copy.png")
    return root


def page_of(path):
    return Page(path, lambda path: path)


def test_one_image_gives_a_page_and_ranks_with_its_copy_first(run, gallery, tmp_path, capsys):
    out = [tmp_path / f"found.{ending}" for ending in ("html", "csv", "json")]
    query = gallery / "dog" / "0.png"
    written = ",".join(map(str, out))
    main(["retrieve", f"--workdir={run}", f"--data={gallery}", f"--query={query}", "--k=5", f"--out={written}"])
    printed = capsys.readouterr().out
    assert "in the gallery, too: 1 of the queries; no image is its own neighbor" in printed
    assert "over 1 queries with a label: precision at 5 40.0" in printed
    with out[1].open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [(row["query"], row["query_label"], row["rank"]) for row in rows] == [
        ("0.png", "dog", str(rank)) for rank in range(1, 6)
    ]
    assert rows[0]["name"] == "dog/copy.png" and rows[0]["label"] == "dog"
    assert float(rows[0]["similarity"]) == pytest.approx(1, abs=1e-5)
    assert "dog/0.png" not in [row["name"] for row in rows]
    found = json.loads(out[2].read_text())
    assert found["k"] == 5 and found["queries"][0]["in_gallery"] is True
    assert [one["name"] for one in found["queries"][0]["neighbors"]] == [row["name"] for row in rows]
    assert found["scores"]["precision_at_k"] == pytest.approx(40)

    page = page_of(out[0])
    assert page.open == [] and not {"script", "link"} & {tag for tag, _ in page.elements}
    shown = [attributes for tag, attributes in page.elements if tag == "img"]
    assert [attributes["alt"] for attributes in shown] == ["0.png", *(row["name"] for row in rows)]
    assert all(attributes["src"].startswith("data:image/") for attributes in shown)
    assert "no image is its own neighbor" in page.text and "1.000" in page.text
    differing = [attributes for tag, attributes in page.elements if attributes.get("class") == "differs"]
    assert len(differing) == sum(row["label"] == "cat" for row in rows)
    assert "Of the 5 images most similar to the query, 40.0% are of its class" in page.text
    assert "prefers-color-scheme: dark" in page.source


def test_without_labels_nothing_is_said_about_them(run, gallery, tmp_path, capsys):
    out = tmp_path / "found.html"
    given = [f"--workdir={run}", f"--data={gallery / 'cat'}", f"--query={gallery / 'dog'}"]
    main(["retrieve", *given, "--k=2", f"--out={out}"])
    assert "precision" not in capsys.readouterr().out
    page = page_of(out)
    assert "The 2 images most similar to each of 3 queries" in page.text and "✕" not in page.text
    assert "its own neighbor" not in page.text
    assert sum(tag == "article" for tag, _ in page.elements) == 3


def test_images_of_many_bands_are_shown_as_the_flags_say(run, tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 4000, (6, *SIZE, 5)).astype(np.uint16)
    np.savez(tmp_path / "bands.npz", images=images)
    out, data = tmp_path / "found.html", tmp_path / "bands.npz"
    given = ["retrieve", f"--backbone={run / weights.FILE}", f"--data={data}", f"--query={data}", f"--out={out}"]
    with pytest.raises(SystemExit, match=r"for images of 3 channels, and those of .* have 5; give --channels=5"):
        main(given)
    with pytest.raises(SystemExit, match=r"--bands, --stretch: bands must be one, or three .* of 0 to 4; got 7"):
        main([*given, "--channels=5", "--bands=7"])
    main([*given, "--channels=5", "--bands=4,0,2", "--stretch=0,100", "--k=5"])
    assert "in the gallery, too: 6 of the queries" in capsys.readouterr().out
    page = page_of(out)
    first = next(attributes for tag, attributes in page.elements if tag == "img")
    encoded = np.frombuffer(base64.b64decode(first["src"].partition(",")[2]), np.uint8)
    bands = images[..., [4, 0, 2]].astype(float)
    low, high = bands.min(axis=(0, 1, 2)), bands.max(axis=(0, 1, 2))
    expected = np.rint(255 * (bands[0] - low) / (high - low))
    np.testing.assert_array_equal(cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1], expected)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"query": ""}, "--query is missing"),
        ({"out": "found.txt"}, r"must end in .html or .csv or .json, got 'found.txt'"),
        ({"out": "absent/found.html"}, "there is no directory absent"),
        ({"k": "6"}, "k=6 is more than the 5 images .* give at most 5"),
        ({"k": "7"}, "k=7 is more than the 6 images .* give at most 6"),
        ({"k": "0"}, "k must be at least 1, got 0"),
        ({"k": "ten"}, "--k must be an integer"),
        ({"bands": "red"}, "--bands must be numbers separated by commas, got 'red'"),
        ({"query": "absent.png"}, "absent.png"),
        ({"query": "{broken}"}, "broken.png"),
        ({"query": "{deep}"}, "for images of 3 channels, and those of .* have 4"),
    ],
)
def test_what_cannot_be_found_is_told(run, gallery, tmp_path, change, message):
    broken, deep = tmp_path / "broken.png", tmp_path / "deep.npy"
    broken.write_bytes(b"no image")
    np.save(deep, np.zeros((2, *SIZE, 4), np.uint8))
    query = gallery / "cat" / "0.png"
    given = {"workdir": run, "data": gallery, "query": query, "k": "5", "out": str(tmp_path / "found.html"), **change}
    given["query"] = str(given["query"]).format(broken=broken, deep=deep)
    with pytest.raises(SystemExit, match=message):
        main(["retrieve", *(f"--{name}={value}" for name, value in given.items())])
    assert not list(tmp_path.glob("*.html"))

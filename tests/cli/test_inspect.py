import json
import shutil

import cv2
import numpy as np
import pytest

from ssl_jax import __main__ as program
from ssl_jax.cli.flags import read_flags
from ssl_jax.data import folders, opening
from ssl_jax.training.config_keys import of_sections
from tests.data.inspection.sources import scene


@pytest.fixture
def photos(tmp_path):
    """train/ and test/ of two classes, with a copy in both, a broken file and one that is no image."""
    for number in range(24):
        folder = tmp_path / "photos" / ("test" if number > 19 else "train") / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{number}.png"), (255 * scene(number, 90, 100)).astype(np.uint8))
    photos = tmp_path / "photos"
    shutil.copy(photos / "test" / "a" / "20.png", photos / "train" / "a" / "copy.png")
    (photos / "train" / "a" / "broken.png").write_bytes((photos / "train" / "a" / "0.png").read_bytes()[:900])
    (photos / "train" / "b" / "text.png").write_text("not an image")
    return photos


def test_a_folder_end_to_end(photos, capsys, monkeypatch):
    monkeypatch.chdir(photos.parent)
    program.main(["inspect", "photos", "--json", "found.json"])
    text = capsys.readouterr().out
    assert "train: 23 images, 21 read" in text and "test: 4 images, 4 read" in text
    assert "train: train/a/copy.png  =  test: test/a/20.png" in text
    assert "cannot be read: train/a/broken.png" in text
    found = json.loads((photos.parent / "found.json").read_text())
    assert [len(found["equal"]), len(found["near"])] == [1, 0]
    assert list(found["splits"][0]["unreadable"]) == ["train/a/broken.png", "train/b/text.png"]
    page = (photos.parent / "inspect.html").read_text()
    assert "ssl_jax train --config simclr:folder" in page and "train/a/copy.png" in page
    # The command that it names can be run.
    command = text[text.index("ssl_jax train") : text.index("\n\ninspect.html")].replace("\\\n", " ")
    words = [word.strip("'") for word in command.split()[2:]]
    strings = {"workdir": ""}
    read = read_flags(words, program="test", sections=of_sections, strings=strings).config
    assert read.data.path == "photos" and read.data.image_size == (64, 64) and read.batch_size == 4


def test_a_folder_is_listed_once(photos, monkeypatch):
    listed, find_splits = [], folders.find_splits
    monkeypatch.setattr(folders, "find_splits", lambda root: listed.append(root) or find_splits(root))
    assert {name: len(source) for name, source in opening.open_splits(str(photos), None).items()} == {
        "train": 23,
        "test": 4,
    }
    assert len(listed) == 1


def test_an_array_file(tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32), dtype=np.uint8)
    images[7] = images[3]
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(40) % 4)
    program.main(["inspect", str(tmp_path / "images.npz"), "--out", str(tmp_path / "page.html"), "--images", "30"])
    text = capsys.readouterr().out
    assert "train: 40 images, 30 read" in text and "test:" not in text
    start = text[text.index("ssl_jax train") : text.index("\n\n" + str(tmp_path / "page.html"))]
    assert f"--config.data.path={tmp_path / 'images.npz'}" in start
    assert "--config.data.channels=1" in start and "--config.data.image_size=(32,32)" in start


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nothing_of_this_name"], "no folder 'nothing_of_this_name'"),
        (["DATA", "--bands", "red"], "--bands must be numbers with commas, such as 3,2,1, got 'red'"),
        (["DATA", "--bands", "1,2"], "bands must be one channel, or three"),
        (["DATA", "--out", "no/such/page.html"], "there is no folder 'no/such'"),
        (["DATA", "--images", "-1"], "--images must be 0 or above"),
        (["DATA", "--split", "val2"], "val2"),
    ],
)
def test_wrong_arguments_stop_it_before_it_reads(arguments, message, photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    with pytest.raises(SystemExit, match="error: ") as error:
        program.main(["inspect", *[str(photos) if part == "DATA" else part for part in arguments]])
    assert message in str(error.value)


def test_a_folder_of_broken_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.png").write_text("not an image")
    with pytest.raises(SystemExit, match="error: no image could be read"):
        program.main(["inspect", "photos"])
    assert "cannot be read: one.png" in capsys.readouterr().out and (tmp_path / "inspect.html").exists()

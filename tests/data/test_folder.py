import errno
import os
from pathlib import Path

import numpy as np
import pytest

from ssl_jax.data import folders


@pytest.fixture
def make(tmp_path):
    """make("a.png", "b/c.jpg") -> a folder with these (empty) files."""

    def make(*files):
        for file in files:
            path = tmp_path / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path

    return make


def test_images_at_any_depth_in_sorted_order(make):
    root = make("z.png", "b/deep/deeper/two.JPG", "a.webp", "notes.txt", ".hidden.png", ".git/one.png", "b/.x/one.png")
    assert folders.find_splits(root) == {"train": (["a.webp", "b/deep/deeper/two.JPG", "z.png"], [None, "b", None])}


def test_each_folder_is_read_once_through_links(make, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "far.png").touch()
    root = make("cat/one.png")
    (root / "cat" / "loop").symlink_to(root)
    (root / "dog").symlink_to(elsewhere)
    (root / "dog again").symlink_to(elsewhere)
    assert folders.find_splits(root)["train"].files == ["cat/one.png", "dog/far.png"]


@pytest.mark.parametrize(
    "files, splits",
    [
        (["train/cat/1.png", "test/cat/1.png"], ["train", "test"]),
        (["train/cat/1.png", "val/1.png"], ["train", "val"]),
        (["train/cat/1.png"], ["train"]),
        (["train/1.png", "bus/1.png", "car/1.png"], ["train"]),  # vehicles: classes, no splits
        (["test/1.png", "other/1.png"], ["train"]),
    ],
)
def test_which_folders_are_splits(make, files, splits):
    found = folders.find_splits(make(*files))
    assert list(found) == splits
    assert sum(len(split.files) for split in found.values()) == len(files)


def test_classes_are_the_folders_below_the_split(make):
    splits = folders.find_splits(
        make("train/cat/a/1.jpg", "train/dog/2.jpg", "test/cat/1.jpg", "test/eel/1.jpg", "test/0.png")
    )
    names = folders.class_names(splits.values())
    assert names == ("cat", "dog", "eel")  # of all splits: a class that is only tested is never predicted rightly
    np.testing.assert_array_equal(folders.labels(splits["train"], names), [0, 1])
    np.testing.assert_array_equal(folders.labels(splits["test"], names), [-1, 0, 2])


def test_classes_of_a_lone_train_folder(make):
    splits = folders.find_splits(make("train/cat/1.png", "train/dog/1.png"))
    assert splits["train"].classes == ["cat", "dog"]


@pytest.mark.parametrize("files", [["1.png", "2.png"], ["2024/1.png", "2024/may/2.png"]])
def test_no_labels_without_two_classes(make, files):
    splits = folders.find_splits(make(*files))
    assert folders.class_names(splits.values()) == ()
    assert folders.labels(splits["train"], ()) is None


def test_names_of_the_test_split_stand_in_for_each_other(make):
    splits = folders.find_splits(make("train/1.png", "val/1.png"))
    for name in ("test", "validation", "val"):
        assert folders.pick(splits, name).files == ["val/1.png"]
    both = folders.find_splits(make("train/1.png", "val/1.png", "test/2.png"))
    assert folders.pick(both, "val").files == ["val/1.png"]
    assert folders.pick(both, "test").files == ["test/2.png"]
    with pytest.raises(ValueError, match="no split 'extra', only train, test, val"):
        folders.pick(both, "extra")


def test_a_folder_is_divided_by_name_and_class():
    files = sorted(f"{name}/{k}.png" for name, count in (("cat", 100), ("dog", 10), ("eel", 2)) for k in range(count))
    split = folders.Split([*files, "loner.png"], [*(file.split("/")[0] for file in files), None])
    train, test = folders.divide(split)
    assert [test.classes.count(name) for name in ("cat", "dog", "eel", None)] == [20, 2, 1, 0]
    assert sorted(train.files + test.files) == split.files
    assert train.files == sorted(train.files)
    assert [file.split("/")[0] for file in test.files] == test.classes
    assert test.files[:20] != files[:20]  # not the first ones, which may be of one day or one camera
    # Of one class only the names count, so the other classes change nothing.
    cats = folders.Split(files[:100], ["cat"] * 100)
    assert folders.divide(cats)[1].files == test.files[:20]


@pytest.mark.parametrize(
    "files, error, message",
    [
        ([], ValueError, "no images in .*, put files there; what is read ends in .avif, .*.webp"),
        (["notes.txt", "a.TXT", "README"], ValueError, "no images in .*, only 2 .txt, 1 without an ending; what is"),
        (["../one.png"], FileNotFoundError, "no folder .*looked from"),
    ],
)
def test_what_holds_no_images_is_said(make, tmp_path, files, error, message):
    make(*files)
    root = tmp_path / "gone" if error is FileNotFoundError else tmp_path
    with pytest.raises(error, match=message):
        folders.find_splits(root)


def test_a_file_is_no_folder(make):
    with pytest.raises(ValueError, match="is a file; give the folder"):
        folders.find_splits(make("one.png") / "one.png")


def test_an_empty_split_and_a_single_image_are_said(make):
    splits = folders.find_splits(make("train/one.png", "val/notes.txt"))
    with pytest.raises(ValueError, match="split 'val' of the folder has no images"):
        folders.pick(splits, "val")
    with pytest.raises(ValueError, match="1 image cannot be divided"):
        folders.divide(splits["train"])


def test_a_folder_that_may_not_be_read_is_left_out(make, caplog, monkeypatch):
    root = make("open/one.png", "closed/two.png")
    scandir = os.scandir

    def refuse_closed(path):  # as chmod 0 does, except to root
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse_closed)
    assert folders.find_splits(root)["train"].files == ["open/one.png"]
    assert "closed" in caplog.text

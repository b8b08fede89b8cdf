import errno
import importlib.util
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from ssl_jax.data import fashion_mnist, folder_source, tfds_source
from ssl_jax.data.formats import UndecodableImage
from ssl_jax.data.opening import load, load_pair
from ssl_jax.data.sources import ArraySource, Subset

ROOT = Path(__file__).parents[2]
CLASSES = ("circle", "square")
SHADES = ("dark", "light", "round")
COLORS = {"train": range(0, 60, 10), "test": range(100, 130, 10)}  # the one color of each image


def png(color, size=(6, 4), mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, size, color if mode == "L" else (color, 0, 255 - color)).save(file, "PNG")
    return file.getvalue()


def shades(color):
    return [k for k, found in enumerate((color < 25, color > 15, color % 20 == 0)) if found]


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """TFDS's data_dir with "tiny_shapes", written by TFDS itself, which needs no TensorFlow for encoded images."""
    import tensorflow_datasets as tfds

    class TinyShapes(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        url_infos: ClassVar = {}  # there is nothing to download

        def _info(self):
            features = {
                "id": tfds.features.Text(),
                "background": tfds.features.Image(shape=(None, None, 1)),  # comes before "image"
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(names=CLASSES),
                "sides": tfds.features.Sequence(tfds.features.Scalar(np.int64)),
                "shades": tfds.features.Sequence(tfds.features.ClassLabel(names=SHADES)),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(colors) for split, colors in COLORS.items()}

        def _generate_examples(self, colors):
            for k, color in enumerate(colors):
                data = b"no image" if color == 50 else png(color)
                background = io.BytesIO(png(7, mode="L"))
                labels = {"label": k % 2, "sides": [4], "shades": shades(color)}
                yield k, {"id": str(k), "background": background, "image": io.BytesIO(data), **labels}

    data_dir = tmp_path_factory.mktemp("tfds")
    TinyShapes(data_dir=data_dir).download_and_prepare(file_format="array_record")
    return data_dir


def test_tfds_images_and_labels(tfds_dir):
    source = load("tiny_shapes", path=str(tfds_dir))
    assert (len(source), source.class_names, source.name) == (6, CLASSES, "tiny_shapes/train")
    colors, broken = [], []
    for index, label in enumerate(source.labels):
        try:
            image, own_label = source.read(index)
        except UndecodableImage as error:
            broken.append((error.name, index))
            continue
        assert image.shape == (4, 6, 3)
        color = int(image[0, 0, 0])
        assert (image == [color, 0, 255 - color]).all()  # RGB, not BGR
        assert label == own_label == color // 10 % 2
        colors.append(color)
    assert sorted(colors) == [0, 10, 20, 30, 40]
    assert [name for name, _ in broken] == [f"tiny_shapes/train[{index}]" for _, index in broken]
    assert len(broken) == 1


def test_tfds_sequences_of_labels(tfds_dir):
    source = load("tiny_shapes", path=str(tfds_dir), split="train+test")
    assert (source.targets.kind, source.targets.names) == ("multilabel", SHADES)
    for index, found in enumerate(source.targets.values):
        if source.labels[index] == 0:  # these can all be decoded
            color = int(source[index][0, 0, 0])
            assert found.tolist() == [color < 25, color > 15, color % 20 == 0]


def test_tfds_splits_and_slices(tfds_dir):
    train, test = load_pair(
        "tiny_shapes", train_split="train[:50%]", test_split="train[50%:]+test", path=str(tfds_dir), channels=1
    )
    assert (len(train), len(test)) == (3, 6)
    assert test[5].shape == (4, 6, 1)
    with pytest.raises(ValueError, match=r"Unknown split 'valid'. Should be one of .*train"):
        load("tiny_shapes", split="valid", path=str(tfds_dir))


def test_tfds_in_another_format_says_what_to_do(tfds_dir, tmp_path):
    shutil.copytree(tfds_dir, tmp_path, dirs_exist_ok=True)
    info = tmp_path / "tiny_shapes/1.0.0/dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="without random access; move it away"):
        load("tiny_shapes", path=str(tmp_path))


def test_reading_and_training_batches_load_neither_tensorflow_nor_torch(tfds_dir):
    code = f"""
import sys
from ssl_jax.data import opening, pipeline
source = opening.load("tiny_shapes", path={str(tfds_dir)!r})
crops = [pipeline.RandomCrop((4, 4), (0.2, 1.0), (0.75, 1.33))] * 2
next(pipeline.train_batches(source, seed=0, batch_size=2, image_size=(4, 4), crops=crops, memory_bytes=0))
print(sorted({{"tensorflow", "torch"}} & set(sys.modules)))
"""
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


@pytest.mark.parametrize(
    "name, message",
    [
        ("cifra10", "no data set 'cifra10'; did you mean 'cifar10'"),
        ("my_photos_2024", "no data set 'my_photos_2024'; for your own images give their folder"),
        ("cifar10", r"cifar10 is not prepared in .* needs TensorFlow: pip install 'ssl_jax\[prepare\]'$"),
        ("fashion_mnist", "needs TensorFlow: .* or, as root: apt install dataset-fashion-mnist"),
        ("huggingface:someone/photos", "'huggingface:someone/photos' has a namespace.*save its images to a folder"),
        ("kaggle:photos", "Code from elsewhere would read it"),
        ("../../photos", "'../../photos'|string ../../photos"),
    ],
)
def test_tfds_data_that_is_not_there(name, message, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # no TensorFlow
    monkeypatch.setattr(fashion_mnist, "installed", dict)
    with pytest.raises(ValueError, match=message):
        load(name, path=str(tmp_path))


def test_a_failed_preparation_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(tfds_source, "PREPARE", "import sys; sys.exit(1)")
    with pytest.raises(ValueError, match=r"could not prepare imagenet2012.*downloaded by hand"):
        load("imagenet2012", path=str(tmp_path))


def test_fashion_mnist_from_debian_where_tfds_has_none(tmp_path, monkeypatch):
    images, labels = np.arange(3 * 28 * 28).astype(np.uint8).reshape(3, 28, 28), np.array([9, 0, 4], np.uint8)
    monkeypatch.setattr(fashion_mnist, "installed", lambda: {"some": tmp_path})
    monkeypatch.setattr(fashion_mnist, "load", lambda files, split: (images, labels))
    source = load("fashion_mnist", path=str(tmp_path), channels=3)
    assert source.class_names[9] == "Ankle boot"
    np.testing.assert_array_equal(source.labels, [9, 0, 4])
    np.testing.assert_array_equal(source[1], np.repeat(images[1][..., None], 3, axis=-1))


def write(root, *files):
    for k, file in enumerate(files):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(png(k))


def test_folder(tmp_path):
    write(tmp_path, "cat/a.png", "dog/b.png", "c.png")
    source = load("folder", path=str(tmp_path))
    assert source.class_names == ("cat", "dog")
    np.testing.assert_array_equal(source.labels, [-1, 0, 1])  # c.png, cat/a.png, dog/b.png
    image, label = source.read(2)
    assert (image[0, 0].tolist(), label) == ([1, 0, 254], 1)
    assert load("folder", path=str(tmp_path), channels=1)[0].shape == (4, 6, 1)


def test_debians_folder_that_is_not_there_names_its_package(tmp_path, monkeypatch):
    path = str(tmp_path / "stamps")
    monkeypatch.setattr(folder_source, "DEBIAN_FOLDERS", {path: "tuxpaint-stamps-default"})
    with pytest.raises(FileNotFoundError, match="apt install tuxpaint-stamps-default, or give a folder of your own"):
        load("folder", path=path)


def test_folder_without_classes_has_no_labels(tmp_path):
    write(tmp_path, "a.png", "b.png")
    source = load("folder", path=str(tmp_path))
    assert source.labels is None
    assert source.class_names == ()
    assert source.read(1)[1] == -1


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 and no more")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")  # would be waited for without end
    source = load("folder", path=str(tmp_path))
    for index, (name, reason) in enumerate(
        [
            ("broken.jpg", "broken or truncated"),
            ("link.jpg", "broken link"),
            ("loop.jpg", "broken link"),
            ("pipe.jpg", "not a regular file"),
        ]
    ):
        with pytest.raises(UndecodableImage, match=reason) as error:
            source.read(index)
        assert error.value.name == name


@pytest.mark.parametrize("call", ["os.stat", "builtins.open"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_files_that_the_disk_or_its_rights_withhold_are_named(tmp_path, monkeypatch, call, number):
    write(tmp_path, "one.png")
    source = load("folder", path=str(tmp_path))

    real = os.stat if call == "os.stat" else open

    def refuse(path, *arguments, **options):
        if str(path).endswith("one.png"):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(call, refuse)
    with pytest.raises(UndecodableImage, match=f"one.png: {os.strerror(number)}"):
        source.read(0)


def test_what_a_file_is_called_cannot_command_a_terminal(tmp_path):
    name = os.fsdecode(b"a\x1b[2J\nerror: all is lost\xff\xc3\xa9.png")
    (tmp_path / name).write_bytes(b"no image")
    with pytest.raises(UndecodableImage) as error:
        load("folder", path=str(tmp_path)).read(0)
    assert error.value.name == r"a\x1b[2J\nerror: all is lost\udcff\u00e9.png".replace(r"\u00e9", "é")
    assert str(error.value).startswith(error.value.name)


def test_pair_of_a_folder_with_splits(tmp_path):
    write(tmp_path, "train/cat/a.png", "train/dog/b.png", "val/dog/c.png", "val/eel/d.png")
    train, test = load_pair("folder", train_split="train", test_split="test", path=str(tmp_path))
    assert train.class_names == test.class_names == ("cat", "dog", "eel")
    np.testing.assert_array_equal(test.labels, [1, 2])
    np.testing.assert_array_equal(load("folder", split="val", path=str(tmp_path)).labels, [1, 2])


def test_pair_of_a_folder_without_splits(tmp_path):
    write(tmp_path, *(f"{name}/{k}.png" for name in ("cat", "dog") for k in range(10)))
    train, test = load_pair("folder", train_split="train", test_split="test", path=str(tmp_path))
    np.testing.assert_array_equal(np.bincount(train.labels), [8, 8])
    np.testing.assert_array_equal(np.bincount(test.labels), [2, 2])
    colors = [int(source[k][0, 0, 0]) for source in (train, test) for k in range(len(source))]
    assert sorted(colors) == list(range(20))


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({}, ValueError, "a folder of images needs its path"),
        ({"path": "no/such/folder"}, FileNotFoundError, "no folder 'no/such/folder'"),
        ({"path": ".", "channels": 0}, ValueError, r"channels must be 1 \(gray\), 3 \(RGB\), .*, got 0"),
    ],
)
def test_mistakes_with_folders_are_said(options, error, message):
    with pytest.raises(error, match=message):
        load("folder", **options)
    with pytest.raises(error, match=message):
        load_pair("folder", train_split="train", test_split="test", **options)


def test_array():
    images = np.arange(2 * 3 * 4).astype(np.uint8).reshape(2, 3, 4)
    source = ArraySource(images, np.array([1, -1]))
    np.testing.assert_array_equal(source[1], images[1][..., None])
    assert source.class_names == ("0", "1")
    assert source.labels.dtype == np.int32
    assert [source.read(k)[1] for k in range(2)] == [1, -1]
    assert ArraySource(images).labels is None
    assert ArraySource(np.zeros((2, 3, 4, 5), np.uint8))[0].shape == (3, 4, 5)


@pytest.mark.parametrize(
    "images, labels, names, message",
    [
        (np.zeros((2, 3, 3), np.float64), None, (), r"of uint8, uint16, int16, float32, got float64; use"),
        (np.zeros((3, 3), np.uint8), None, (), r"images must be \[images, height, width, channels\], got \[3, 3\]"),
        (np.zeros((2, 3, 3), np.uint8), np.zeros(3, int), (), "2 images need as many labels"),
        (
            np.zeros((2, 3, 3), np.uint8),
            np.array([-1, 2]),
            ("a", "b"),
            r"labels are in -1\.\.2, but there are 2 class names",
        ),
        (np.zeros((2, 3, 3), np.uint8), np.array([0, -2]), ("a",), r"labels are in -2\.\.0,"),
    ],
)
def test_arrays_that_are_no_images_are_refused(images, labels, names, message):
    with pytest.raises(ValueError, match=message):
        ArraySource(images, labels, names)


def test_digests_tell_other_images_and_another_order(tmp_path, tfds_dir):
    files = [tmp_path / "photos" / name for name in ("a.png", "b.png", "c.png")]
    files[0].parent.mkdir()
    for file in files:
        file.write_bytes(png(1))
    begun = load("folder", path=str(tmp_path / "photos"))
    (tmp_path / "photos").rename(tmp_path / "moved")
    digest = lambda: load("folder", path=str(tmp_path / "moved")).digest()  # noqa: E731
    assert digest() == begun.digest()
    (tmp_path / "moved" / "c.png").rename(tmp_path / "moved" / "d.png")
    assert digest() != begun.digest()  # as many, by another name
    (tmp_path / "moved" / "d.png").rename(tmp_path / "moved" / "c.png")
    assert digest() == begun.digest()

    others = [Subset(begun, np.array(indices)) for indices in ([0, 1], [1, 0])]
    others += [ArraySource(np.zeros((2, 3, 3), np.uint8), name=name) for name in ("one", "two")]
    others += [load("tiny_shapes", split=split, path=str(tfds_dir)) for split in COLORS]
    assert len({source.digest() for source in [begun, *others]}) == 1 + len(others)


def test_subset():
    source = ArraySource(np.arange(5, dtype=np.uint8).reshape(5, 1, 1), np.arange(5), "abcde")
    subset = Subset(source, np.array([4, 0, 4]))
    assert len(subset) == 3
    np.testing.assert_array_equal(subset.labels, [4, 0, 4])
    assert [(image.item(), label) for image, label in map(subset.read, range(3))] == [(4, 4), (0, 0), (4, 4)]
    assert subset.class_names == source.class_names
    assert Subset(ArraySource(np.zeros((2, 1, 1), np.uint8)), np.array([1])).labels is None

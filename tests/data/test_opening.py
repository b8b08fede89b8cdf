"""What all kinds of data have in common: values, labels, names, groups, splits, threads, memory, digests."""

import shutil
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ssl_jax import weights
from ssl_jax.cli import embed, train
from ssl_jax.data import opening
from ssl_jax.data.formats import UndecodableImage
from ssl_jax.workdir import facts
from tests.cli.test_train import arguments
from tests.data import kinds
from tests.evaluation.test_embedding import SIZE, network


@pytest.fixture(scope="module", params=kinds.WRITERS)
def kind(request, tmp_path_factory):
    """(name of a kind, DATA of it)."""
    return request.param, str(kinds.WRITERS[request.param](tmp_path_factory.mktemp(request.param)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The directory of a small backbone."""
    path, small = tmp_path_factory.mktemp("backbone"), network()
    kept = {**small.facts, "image_size": [*SIZE], "channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3}
    weights.save_backbone(path, small.variables, kept)
    return path


@pytest.fixture
def source(kind):
    return opening.open_data(kind[1])


def test_images_labels_groups_and_names_are_those_that_were_written(kind, source):
    assert len(source) == kinds.COUNT
    for index in np.random.default_rng(0).permutation(kinds.COUNT).tolist():
        image, label = source.read(index)
        np.testing.assert_array_equal(image, kinds.IMAGES[index])
        assert image.dtype == np.uint8 and image.flags.c_contiguous
        assert label == (-1 if kind[0] in kinds.UNLABELED else kinds.LABELS[index])
    assert len({source.image_name(index) for index in range(kinds.COUNT)}) == kinds.COUNT
    if kind[0] not in kinds.UNLABELED:
        assert source.class_names == kinds.CLASSES
        assert source.labels.dtype == np.int32 and source.labels.tolist() == kinds.LABELS.tolist()
        assert list(source.groups) == kinds.GROUPS


@pytest.mark.parametrize("window", [0, 9])
def test_other_channels_are_read_without_opening_the_images_again(kind, window):
    as_they_are = opening.open_data(kind[1], channels=None, window=window)
    gray, anew = as_they_are.with_channels(1), opening.open_data(kind[1], channels=1, window=window)
    assert (len(gray), gray.digest()) == (len(anew), anew.digest())
    np.testing.assert_array_equal(gray[3], anew[3])
    assert as_they_are[3].shape[-1] == 3


def test_several_threads_may_read_at_once(source):
    order = np.random.default_rng(0).integers(0, kinds.COUNT, 300).tolist()
    with ThreadPoolExecutor(8) as pool:
        for index, (image, _) in zip(order, pool.map(source.read, order), strict=True):
            np.testing.assert_array_equal(image, kinds.IMAGES[index])


def test_a_pair_never_divides_a_group_and_keeps_every_image(kind):
    train, test = opening.open_pair(kind[1])
    assert len(train) + len(test) == kinds.COUNT
    if kind[0] in kinds.UNLABELED:
        assert len(test) == 6
    else:
        assert len(test) == 6 and len({*test.groups}) == 2  # of ten patients with three images each
        assert not {*train.groups} & {*test.groups}
        assert train.class_names == test.class_names == kinds.CLASSES
    again = opening.open_pair(kind[1])
    assert [part.digest() for part in again] == [train.digest(), test.digest()]


def test_digests_follow_the_data_not_their_place(kind, tmp_path):
    data, folder = kind[1], kind[1].partition("#")[0].rpartition("/")[0].removesuffix("/data")
    shutil.copytree(folder, tmp_path / "moved")
    moved = data.replace(folder, str(tmp_path / "moved"))
    assert opening.open_data(moved).digest() == opening.open_data(data).digest()


def test_a_missing_split_is_said_with_what_to_do(kind):
    with pytest.raises(
        ValueError, match=r"has no split 'test', only train; .*(column split|train/images|word test|that split)"
    ):
        opening.open_data(kind[1], split="test")


@pytest.mark.parametrize("kind", ["csv_list", "npz", "hdf5", "zarr", "tars"])
def test_images_are_read_one_at_a_time(kind, tmp_path, monkeypatch):
    images = np.random.default_rng(1).integers(0, 256, (kinds.COUNT, 300, 200, 3), np.uint8)
    monkeypatch.setattr(kinds, "IMAGES", images)
    source = opening.open_data(str(kinds.WRITERS[kind](tmp_path)))
    tracemalloc.start()
    for index in range(len(source)):
        source.read(index)
    source.digest()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * images[0].nbytes  # of 30; a PNG, what it is decoded to, and what the library keeps


def test_every_kind_is_embedded(kind, saved, tmp_path):
    embed.main([f"--workdir={saved}", f"--data={kind[1]}", f"--out={tmp_path / 'h.npz'}"])
    with np.load(tmp_path / "h.npz") as found:
        assert len(np.unique(found["embeddings"], axis=0)) == kinds.COUNT
        if kind[0] not in kinds.UNLABELED:
            assert found["labels"].tolist() == kinds.LABELS.tolist()
            assert found["class_names"].tolist() == list(kinds.CLASSES)


@pytest.mark.parametrize(
    "kind", [kind if kind == "csv_list" else pytest.param(kind, marks=pytest.mark.slow) for kind in kinds.WRITERS]
)
def test_every_kind_trains(kind, tmp_path):
    data, workdir = kinds.WRITERS[kind](tmp_path), tmp_path / "run"
    short = ["--config.steps=1", "--config.log_every=1", "--config.evaluate_every=0", "--config.checkpoint_every=1"]
    train.main(arguments(workdir, data, *short))
    trained = facts.trained_on(workdir)
    assert (trained["name"], trained["digest"]) == (str(data), opening.open_data(str(data)).digest())
    assert (workdir / "backbone.safetensors").exists()


@pytest.mark.parametrize(
    "data, error, message",
    [
        ("nowhere.csv", FileNotFoundError, "there is no file 'nowhere.csv'"),
        ("nowhere.parquet", FileNotFoundError, r"there is no file 'nowhere.parquet' \(looked from"),
        ("nowhere.h5#x", FileNotFoundError, "there is no file 'nowhere.h5'"),
        ("nowhere-{0..1}.tar", FileNotFoundError, "there is no file 'nowhere-0.tar'"),
        ("nowhere*.array_record", FileNotFoundError, r"there is no file 'nowhere\*.array_record'"),
        (__file__, ValueError, r"test_opening.py' is a file of another kind than is read: a folder of images; a list"),
    ],
)
def test_data_that_are_not_there_or_of_no_kind_are_told(data, error, message):
    with pytest.raises(error, match=message):
        opening.open_data(data)
    with pytest.raises(error, match=message):
        opening.open_pair(data)


def test_some_bands_of_arrays_are_read_in_the_order_that_is_asked_for(tmp_path):
    images = np.arange(4 * 5 * 6 * 3, dtype=np.uint16).reshape(4, 5, 6, 3)
    np.savez(tmp_path / "a.npz", images=images, labels=[0, 1, 0, 1])
    found = opening.open_data(str(tmp_path / "a.npz"), bands=(2, 0))
    np.testing.assert_array_equal(found[1], images[1][..., [2, 0]])
    whole = opening.open_data(str(tmp_path / "a.npz"), channels=None)
    assert (len(found), found.labels.tolist(), found.name) == (4, [0, 1, 0, 1], whole.name)
    assert found.digest() != whole.digest() != opening.open_data(str(tmp_path / "a.npz"), bands=(0, 2)).digest()
    with pytest.raises(UndecodableImage, match="it has 3 bands, so there is no band 3"):
        opening.open_data(str(tmp_path / "a.npz"), bands=(3,)).read(0)
    with pytest.raises(ValueError, match=r"pages='bands' is for a folder of image files"):
        opening.open_data(str(tmp_path / "a.npz"), pages="bands")

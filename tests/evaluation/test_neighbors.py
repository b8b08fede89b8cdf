"""Which images of a gallery are found for a query."""

import shutil

import numpy as np
import pytest

import ssl_jax
from ssl_jax.data import folder, from_list, opening, pipeline, sources
from ssl_jax.evaluation.neighbors import nearest
from tests.cli.test_train import make_folder
from tests.evaluation.test_embedding import SIZE, network

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, *SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def small():
    return network()


def test_the_ranks_are_those_of_a_full_sort():
    queries, gallery = RNG.normal(size=(11, 5)).astype(np.float32), RNG.normal(size=(50, 5)).astype(np.float32)
    gallery[20] = 0
    own = np.where(np.arange(11) % 2, np.arange(11), -1)
    rows, similarities = nearest(queries, gallery, 49, own)
    unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9) for x in (queries, gallery)]
    cosines = unit[0] @ unit[1].T
    for i in range(11):
        expected = np.argsort(-cosines[i].round(6), kind="stable")
        np.testing.assert_array_equal(rows[i], expected[expected != own[i]][:49])
        np.testing.assert_allclose(similarities[i], cosines[i][rows[i]], atol=1e-6)


def test_of_many_equal_images_the_first_are_given():
    rows, similarities = nearest(np.ones((1, 2), np.float32), np.ones((9, 2), np.float32), 3, np.array([1]))
    assert rows.tolist() == [[0, 2, 3]]
    np.testing.assert_allclose(similarities, 1, rtol=1e-6)


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="gallery: 1 of 2 rows of features are not finite"):
        nearest(np.ones((1, 2), np.float32), np.array([[1, 2], [np.nan, 1]], np.float32), 1)


def test_a_copy_is_first_with_similarity_one(small):
    gallery = np.concatenate([IMAGES, IMAGES[4:6]])
    found = ssl_jax.retrieve(small, gallery, IMAGES[4:6], k=3)
    assert found.queries == ["0", "1"] and not found.in_gallery.any()
    assert found.indices[:, :2].tolist() == [[4, 12], [5, 13]]
    assert found.names[0][:2] == ["4", "12"]
    np.testing.assert_allclose(found.similarities[:, :2], 1, atol=1e-5)
    assert (np.diff(found.similarities, axis=1) <= 0).all() and found.similarities[:, 2].max() < 0.99999
    assert found.scores is None and found.query_labels == ["", ""]


def test_among_themselves_images_are_not_their_own_neighbors(small):
    labels = np.array([0, 0, 1, 1])
    source = sources.ArraySource(IMAGES[[0, 0, 1, 1]], labels, ("cat", "dog"))
    found = ssl_jax.retrieve(small, source, source, k=1)
    assert found.indices[:, 0].tolist() == [1, 0, 3, 2] and found.in_gallery.all()
    assert found.labels == [["cat"], ["cat"], ["dog"], ["dog"]]
    assert (found.scores.mean_average_precision, found.scores.precision, found.scores.queries) == (100, {1: 100}, 4)
    again = ssl_jax.retrieve(small, source, sources.ArraySource(IMAGES[[0, 0, 1, 1]], labels, ("cat", "dog")), k=1)
    assert again.indices.tolist() == found.indices.tolist()  # the same name and the same images: one data set


def test_a_file_of_the_gallery_is_found_again_and_has_its_label(small, tmp_path):
    root = make_folder(tmp_path / "gallery", count=8, labeled=True)
    shutil.copy(root / "class_1" / "001.png", tmp_path / "copy.png")
    (tmp_path / "link").symlink_to(root / "class_1")
    gallery = folder(root)
    for query in (root / "class_1" / "001.png", tmp_path / "link" / "001.png"):
        found = ssl_jax.retrieve(small, gallery, opening.open_images(str(query)), k=7)
        assert found.in_gallery.tolist() == [True] and found.query_labels == ["class_1"]
        assert "class_1/001.png" not in found.names[0] and len(set(found.names[0])) == 7
    (tmp_path / "list.csv").write_text("path\ngallery/../gallery/class_1/001.png\n")
    assert ssl_jax.retrieve(small, gallery, from_list(tmp_path / "list.csv"), k=1).in_gallery.all()
    found = ssl_jax.retrieve(small, gallery, opening.open_images(str(tmp_path / "copy.png")), k=1)
    assert found.names == [["class_1/001.png"]] and not found.in_gallery.any() and found.scores is None
    assert found.similarities[0, 0] == pytest.approx(1, abs=1e-5)


def test_folders_of_equal_names_are_not_taken_for_one(small, tmp_path):
    one, other = (make_folder(tmp_path / name, count=4) for name in ("one", "other"))
    assert not ssl_jax.retrieve(small, folder(one), folder(other), k=4).in_gallery.any()


def test_labels_are_compared_by_name_and_images_without_one_do_not_count(small):
    gallery = sources.ArraySource(IMAGES[:6], np.array([0, 1, 1, -1, 0, 1]), ("cat", "dog"))
    queries = sources.ArraySource(IMAGES[[1, 0, 2, 3]], np.array([0, 1, 2, -1]), ("dog", "cat", "cow"))
    found = ssl_jax.retrieve(small, gallery, queries, k=2)
    assert found.query_labels == ["dog", "cat", "cow", ""]
    assert [labels[0] for labels in found.labels] == ["dog", "cat", "dog", ""]
    assert found.scores.queries == 2  # the gallery has no cow


@pytest.mark.parametrize(
    "k, count, message",
    [
        (0, 4, "k must be at least 1, got 0"),
        (5, 4, "k=5 is more than the 4 images of arrays that a query can be compared with; give at most 4"),
    ],
)
def test_an_impossible_k_is_told_before_any_work(k, count, message):
    with pytest.raises(ValueError, match=message):
        ssl_jax.retrieve(network(), IMAGES[:count], IMAGES, k=k)


def test_a_query_is_not_compared_with_itself_so_k_is_smaller(small):
    source = sources.ArraySource(IMAGES[:4])
    with pytest.raises(ValueError, match="k=4 is more than the 3 images"):
        ssl_jax.retrieve(small, source, source, k=4)


def test_queries_that_cannot_be_read_are_left_out_and_none_is_an_error(small, tmp_path):
    root = make_folder(tmp_path / "queries", count=2)
    first, second = sorted(root.rglob("*.png"))
    first.write_bytes(b"no image")
    found = ssl_jax.retrieve(small, IMAGES, folder(root), k=2)
    assert found.queries == [second.name] and found.query_indices.tolist() == [1]
    with pytest.raises(pipeline.ImagesError, match=first.name):
        ssl_jax.retrieve(small, IMAGES, opening.open_images(str(first)), k=2)
    with pytest.raises(pipeline.ImagesError, match="it has 4 channels, and the others have 3"):
        ssl_jax.retrieve(small, IMAGES, np.zeros((2, *SIZE, 4), np.uint8), k=2)


def test_one_image_file_is_opened_and_what_is_none_is_told(tmp_path):
    root = make_folder(tmp_path / "photos", count=2)
    file = sorted(root.rglob("*.png"))[0]
    source = opening.open_images(str(file))
    assert len(source) == 1 and source.name == str(file) and source.image_name(0) == file.name
    assert source.read(0)[0].shape[-1] == 3 and source.labels is None
    assert len(opening.open_images(str(root))) == 2
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(ValueError, match="is a file of another kind than is read"):
        opening.open_images(str(tmp_path / "notes.txt"))

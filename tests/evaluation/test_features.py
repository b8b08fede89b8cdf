"""Features of images, and of large images by their windows."""

import numpy as np
import pytest

import ssl_jax
from ssl_jax import data
from ssl_jax.evaluation import embedding, knn
from ssl_jax.evaluation.evaluation import evaluate_backbone
from ssl_jax.evaluation.features import Extracted, extract, over_windows
from tests.evaluation.test_embedding import SIZE, network


@pytest.fixture(scope="module")
def scenes():
    """Ten scenes of two classes, each of four windows of 16 x 16 pixels."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (10, 32, 32, 3), np.uint8)
    return data.arrays(images, labels=[0, 1] * 5, class_names=("meadow", "forest"))


def test_rows_are_those_of_the_images_in_order():
    images = np.arange(5, dtype=np.float32).reshape(5, 1, 1, 1)
    batches = [
        {"image": images[:3], "label": np.array([0, -1, 1]), "index": np.array([0, 1, 2])},
        {"image": images[3:], "label": np.array([1, 1]), "index": np.array([3, 7])},
    ]
    found = extract(lambda batch: batch.reshape(len(batch), 1) * 2, batches, 3)
    assert found.features.ravel().tolist() == [0, 2, 4, 6, 8]
    assert found.labels.tolist() == [0, -1, 1, 1, 1] and found.index.tolist() == [0, 1, 2, 3, 7]


@pytest.mark.parametrize("shape", [(3,), (2, 2, 3)])
def test_an_image_is_the_mean_of_the_windows_that_could_be_read(scenes, shape):
    cut = data.windows(scenes, 16)
    index = np.array([0, 1, 3, 8, 9, 10, 11])  # of image 0 window 2 is missing, of image 1 all are
    h = np.random.default_rng(1).normal(size=(7, *shape)).astype(np.float32)
    found = over_windows(cut, Extracted(h, cut.labels[index], index))
    np.testing.assert_allclose(found.features, [h[:3].mean(0), h[3:].mean(0)], rtol=1e-6)
    assert found.features.dtype == np.float32
    assert found.index.tolist() == [0, 8] and found.labels.tolist() == [0, 0]
    np.testing.assert_array_equal(over_windows(cut, Extracted(h, cut.labels[index], index), "all").features, h)


def test_images_that_are_no_windows_stay_as_they_are(scenes):
    given = Extracted(np.ones((2, 3), np.float32), np.array([0, 1]), np.array([4, 5]))
    assert over_windows(scenes, given) is given


def test_windows_in_another_order_and_split_are_of_the_same_images(scenes):
    cut = data.windows(scenes, 16)
    order = np.random.default_rng(0).permutation(len(cut))
    h = np.random.default_rng(1).normal(size=(len(cut), 3)).astype(np.float32)
    mixed = data.Subset(cut, order)
    index = np.arange(len(cut))
    found = over_windows(mixed, Extracted(h[order], mixed.labels, index))
    np.testing.assert_allclose(found.features, h.reshape(10, 4, 3).mean(1), rtol=1e-5)
    np.testing.assert_array_equal(found.labels, scenes.labels)


def test_embeddings_of_large_images(scenes):
    small, cut = network(), data.windows(scenes, 16)
    names, h = ssl_jax.embed(small, cut, windows="all")
    assert names[:5] == ["0@0,0", "0@0,16", "0@16,0", "0@16,16", "1@0,0"]
    image, _ = scenes.read(0)
    np.testing.assert_allclose(h[1], small.features(image[None, :16, 16:])[0], rtol=1e-4, atol=1e-5)
    names, means = ssl_jax.embed(small, cut)
    assert names == [str(k) for k in range(10)]
    np.testing.assert_allclose(means, h.reshape(10, 4, -1).mean(1), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="'mean' or 'all', got 'some'"):
        ssl_jax.embed(small, cut, windows="some")


@pytest.mark.parametrize("windows", ["mean", "all"])
def test_protocols_measure_images_or_windows(windows, tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50, 32, 32, 3), np.uint8)
    scenes = data.arrays(images, labels=rng.integers(0, 2, 50), class_names=("meadow", "forest"))
    pair = [data.windows(data.Subset(scenes, np.arange(50)[part]), 16) for part in (slice(30), slice(30, 50))]
    small = network()
    (train, train_labels), (test, test_labels) = (
        (embeddings.features, embeddings.labels)
        for embeddings in (embedding.embeddings(small, source, windows=windows) for source in pair)
    )
    predicted = knn.weighted_knn(train, train_labels, test, num_classes=2, k=(20,), temperature=0.07)[20]
    expected = 100 * np.mean(predicted == test_labels)
    options = {"protocols": ("knn",), "baselines": (), "image_size": SIZE, "windows": windows}
    for _ in range(2):  # the second time the features are read from the folder
        found = evaluate_backbone(small, *pair, features_dir=tmp_path / "features", **options)
        assert found["data"]["windows"] == windows
        assert found["pretrained"]["knn/k20_t0.07/top1"]["mean"] == pytest.approx(expected)
    assert len(test_labels) == (20 if windows == "mean" else 80)

import numpy as np
import pytest
from PIL import Image

from ssl_jax import data
from ssl_jax.data import sources

IMAGES = np.random.default_rng(0).integers(0, 256, (60, 4, 5, 3), np.uint8)
LABELS = np.arange(60) % 3


class Pairs:
    """Items that are Pillow's images with labels, as torchvision's data sets have them."""

    def __init__(self, count=10):
        self.count, self.asked = count, []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.asked.append(index)
        return Image.fromarray(IMAGES[index]), int(LABELS[index])


def test_arrays_are_read_as_they_are_and_only_where_asked_for(tmp_path):
    np.save(tmp_path / "stack.npy", IMAGES)
    mapped = np.load(tmp_path / "stack.npy", mmap_mode="r")
    source = data.arrays(mapped, LABELS, class_names=("a", "b", "c"))
    image, label = source.read(7)
    np.testing.assert_array_equal(image, IMAGES[7])
    assert (label, len(source), source.class_names) == (1, 60, ("a", "b", "c"))
    assert source.digest() == data.arrays(IMAGES, LABELS).digest()


def test_a_digest_tells_images_their_order_and_their_labels_apart():
    changed = IMAGES.copy()
    changed[59, 3, 4, 2] ^= 1
    found = [
        data.arrays(*given).digest()
        for given in (
            (IMAGES, LABELS),
            (IMAGES,),
            (changed, LABELS),
            (IMAGES[::-1].copy(), LABELS),
            (IMAGES, LABELS[::-1]),
        )
    ]
    assert len(set(found)) == len(found)
    whole = data.arrays(IMAGES)
    assert sources.Subset(whole, np.arange(10)).digest() != whole.digest()


def test_of_large_arrays_some_images_are_digested(monkeypatch):
    monkeypatch.setattr(sources, "DIGESTED_BYTES", 600)  # ten images
    read = []

    class Noting(np.ndarray):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    data.arrays(IMAGES.view(Noting)).digest()
    (chosen,) = [index for index in read if isinstance(index, np.ndarray)]
    assert len(chosen) == 11 and (chosen[0], chosen[-1]) == (0, 59)


def test_an_objects_items_may_be_pillows_images_with_labels():
    source = data.as_source(Pairs())
    np.testing.assert_array_equal(source[3], IMAGES[3])
    np.testing.assert_array_equal(source.labels, LABELS[:10])
    assert (source.name, source.class_names) == ("Pairs", ("0", "1", "2"))


def test_labels_are_read_off_an_objects_attribute_where_it_has_them():
    pairs = Pairs()
    pairs.targets = list(LABELS[:10])
    source = data.as_source(pairs)
    assert list(source.labels) == pairs.targets and len(pairs.asked) == 1


def test_gray_images_get_an_axis_for_their_channel():
    assert data.as_source([IMAGES[0, :, :, 0]])[0].shape == (4, 5, 1)


@pytest.mark.parametrize(
    "images, kind, message",
    [
        ("photos", TypeError, "ssl_jax.data .*got 'photos'"),
        (3, TypeError, "__len__ and __getitem__, got 3"),
        ([], ValueError, "list is empty; give at least one image"),
        (IMAGES / 255, ValueError, r"images must be of uint8, .*, got float64; use images.astype"),
    ],
)
def test_what_is_no_source_of_images_is_a_sentence(images, kind, message):
    with pytest.raises(kind, match=message):
        data.as_source(images)


def test_an_item_that_is_no_image_is_named():
    with pytest.raises(ValueError, match=r"list\[1\]: images must be of uint8, .*, got float64"):
        data.as_source([IMAGES[0], IMAGES[1].astype(np.float64)])[1]
    with pytest.raises(ValueError, match=r"list\[1\] must be an image, .* got \[5\]"):
        data.as_source([IMAGES[0], IMAGES[1][0, :, 0]])[1]


def test_groups_are_never_divided():
    groups = np.arange(60) // 6
    for seed in range(5):
        train, test = data.split(data.arrays(IMAGES, LABELS, groups=groups), test_share=0.3, seed=seed)
        assert len(train) + len(test) == 60 and len(test) == 18
        assert not {*train.groups} & {*test.groups}


def test_without_groups_classes_are_divided_alike_and_the_seed_decides():
    parts = [data.split(data.arrays(IMAGES, LABELS), test_share=0.2, seed=seed) for seed in (0, 0, 1)]
    for train, test in parts:
        assert list(np.bincount(train.labels)) == [16, 16, 16] and list(np.bincount(test.labels)) == [4, 4, 4]
    digests = [test.digest() for _, test in parts]
    assert digests[0] == digests[1] != digests[2]
    train, test = data.split(IMAGES, test_share=0.5)
    assert (len(train), len(test), train.labels) == (30, 30, None)


@pytest.mark.parametrize("share", [0.0, 1.0, 0.001, -1.0])
def test_a_share_that_leaves_a_side_empty_is_refused(share):
    if share == 0.001:
        train, test = data.split(IMAGES, test_share=share)
        assert len(test) == 1 and len(train) == 59
        return
    with pytest.raises(ValueError, match=rf"arrays with its 60 images cannot be divided with test_share={share}"):
        data.split(IMAGES, test_share=share)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(labels=LABELS[:-1]), "60 images need as many labels"),
        (dict(groups=LABELS[:-1]), "60 images need as many groups"),
        (dict(labels=LABELS, class_names=("a", "b")), r"labels are in 0\.\.2, but there are 2 class names"),
    ],
)
def test_labels_and_groups_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        data.arrays(IMAGES, **options)


def test_statistics_are_those_of_each_channel():
    found = data.statistics(IMAGES)
    assert found["channels"] == 3
    np.testing.assert_allclose(found["mean"], (IMAGES / 255).mean((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(found["std"], (IMAGES / 255).std((0, 1, 2)), atol=1e-4)

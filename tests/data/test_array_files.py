import builtins

import numpy as np
import pytest

from ssl_jax.data import opening
from ssl_jax.data.array_files import array_splits
from ssl_jax.data.formats import UndecodableImage

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 20, 24, 3), np.uint8)
LABELS = np.array([0, 1, 2, 0, -1, 1])


def write_npy(path, images):
    np.save(path, images)


def write_npz(path, images):
    np.savez(path, images=images)


def write_h5(path, images):
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=images, chunks=(1, *images.shape[1:]), compression="gzip", shuffle=True)


def write_zarr(path, images):
    import zarr

    zarr.open_group(path, mode="w").create_array("images", data=images, chunks=(1, *images.shape[1:]))


WRITERS = {"npy": write_npy, "npz": write_npz, "h5": write_h5, "zarr": write_zarr}


def values(dtype, shape):
    """All kinds of values of a type: its limits, and anything between them."""
    rng, dtype = np.random.default_rng(0), np.dtype(dtype)
    if dtype.byteorder == ">":
        return values(dtype.newbyteorder("<"), shape).astype(dtype)
    if dtype.kind == "f":
        found = rng.standard_normal(shape).astype(dtype)
        found.flat[:4] = [np.nan, np.inf, np.finfo(dtype).max, np.finfo(dtype).tiny]
        return found
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    limits = np.iinfo(dtype)
    found = rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    found.flat[:2] = [limits.min, limits.max]
    return found


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize("channels", [(), (1,), (3,), (13,)])
@pytest.mark.parametrize(
    "stored, read",
    [
        *((name, name) for name in ("uint8", "uint16", "int16", "float32")),
        *(("bool", "uint8"), ("int8", "int16"), ("float16", "float32"), (">u2", "uint16"), (">f4", "float32")),
    ],
)
def test_every_value_is_the_one_that_was_written(tmp_path, ending, channels, stored, read):
    images = values(stored, (3, 18, 20, *channels))
    WRITERS[ending](tmp_path / f"a.{ending}", images)
    (source,) = array_splits(f"{tmp_path}/a.{ending}").values()
    for index in range(3):
        image, label = source.read(index)
        assert image.dtype == read and image.dtype.isnative and image.flags.c_contiguous and label == -1
        np.testing.assert_array_equal(image, images[index].reshape(18, 20, -1))


def test_doubles_are_rounded(tmp_path):
    images = values("float64", (2, 4, 4))
    np.save(tmp_path / "a.npy", images / 10)
    image, _ = array_splits(f"{tmp_path}/a.npy")["train"].read(1)
    np.testing.assert_array_equal(image[..., 0], (images[1] / 10).astype(np.float32))


@pytest.mark.parametrize("order", ["C", "F"])
def test_npz_is_mapped_where_it_is_not_compressed(tmp_path, order):
    images = np.asarray(IMAGES, order=order)
    np.savez(tmp_path / "a.npz", other=np.arange(7), images=images)
    source = array_splits(f"{tmp_path}/a.npz")["train"]
    assert isinstance(source._images, np.memmap)
    for index in range(len(IMAGES)):
        np.testing.assert_array_equal(source.read(index)[0], IMAGES[index])


def test_arrays_of_splits_as_medmnist_has_them(tmp_path):
    arrays = {}
    for split, count in (("train", 6), ("val", 4)):
        arrays |= {f"{split}_images": IMAGES[:count], f"{split}_labels": LABELS[:count, None]}
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    found = array_splits(f"{tmp_path}/a.npz")
    assert {split: len(source) for split, source in found.items()} == {"train": 6, "val": 4}
    assert found["val"].labels.tolist() == [0, 1, 2, 0]
    assert found["val"].class_names == found["train"].class_names == ("0", "1", "2")


def test_arrays_in_folders_of_hdf5(tmp_path):
    import h5py

    with h5py.File(tmp_path / "a.h5", "w") as file:
        for split, count in (("train", 6), ("test", 4)):
            file[f"{split}/images"], file[f"{split}/labels"] = IMAGES[:count], LABELS[:count]
            file[f"{split}/other"], file[f"{split}/groups"] = IMAGES[:count, ::-1], [f"p{k}" for k in range(count)]
        file["class_names"] = ["cat", "dog", "eel"]
    found = array_splits(f"{tmp_path}/a.h5")
    assert {split: len(source) for split, source in found.items()} == {"train": 6, "test": 4}
    assert found["test"].class_names == ("cat", "dog", "eel") and list(found["test"].groups) == ["p0", "p1", "p2", "p3"]
    (one,) = array_splits(f"{tmp_path}/a.h5#test/other").values()
    np.testing.assert_array_equal(one.read(3)[0], IMAGES[3, ::-1])
    assert one.labels.tolist() == LABELS[:4].tolist()
    (whole,) = array_splits(f"{tmp_path}/a.h5#test").values()
    np.testing.assert_array_equal(whole.read(3)[0], IMAGES[3])


def test_several_labels_and_measurements(tmp_path):
    images = values(np.uint8, (4, 5, 6, 3))
    names = np.array(["mass", "node"])
    splits = {"train": [[1, 0], [0, 1], [1, 1], [0, 0]], "test": [[0, 1]] * 4}
    arrays = {f"{split}_images": images for split in splits}
    several = arrays | {f"{split}_labels": np.array(labels) for split, labels in splits.items()}
    np.savez(tmp_path / "several.npz", **several, class_names=names)
    train, test = opening.open_pair(str(tmp_path / "several.npz"))
    assert train.class_names == () and train.labels is None
    assert (train.targets.kind, train.targets.names) == ("multilabel", ("mass", "node"))
    np.testing.assert_array_equal(train.targets.values, splits["train"])
    np.testing.assert_array_equal(test.targets.values, splits["test"])
    numbers = np.array([1.5, 2, np.nan, 4])
    np.savez(
        tmp_path / "numbers.npz", images=images, labels=np.array([0, 1, 0, 1]), targets=numbers, target_names=["age"]
    )
    source = opening.open_data(str(tmp_path / "numbers.npz"))
    assert (source.targets.kind, source.targets.names, source.class_names) == ("regression", ("age",), ("0", "1"))
    np.testing.assert_array_equal(source.targets.values, numbers[:, None].astype(np.float32))
    np.savez(tmp_path / "both.npz", images=images, labels=np.eye(4), targets=numbers)
    with pytest.raises(ValueError, match=r"both.npz has labels \[4, 4\] and targets; keep one of them"):
        opening.open_data(str(tmp_path / "both.npz"))


def test_text_as_labels(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=["10", "9", "", "9", "10", "9"])
    source = array_splits(f"{tmp_path}/a.npz")["train"]
    assert source.class_names == ("9", "10") and source.labels.tolist() == [1, 0, -1, 0, 1, 0]


def test_a_digest_tells_images_and_labels_apart(tmp_path):
    changed = IMAGES.copy()
    changed[5, 0, 0, 0] ^= 1
    found = []
    for images, labels in ((IMAGES, LABELS), (changed, LABELS), (IMAGES, LABELS[::-1]), (IMAGES[:5], LABELS[:5])):
        np.savez(tmp_path / "a.npz", images=images, labels=labels)
        found.append(array_splits(f"{tmp_path}/a.npz")["train"].digest())
    assert len(set(found)) == 4


@pytest.mark.parametrize(
    "arrays, message",
    [
        (dict(images=IMAGES.astype(np.int32)), r"images must be \[images, height.* got int32 \[6, 20, 24, 3\]"),
        (dict(images=IMAGES.astype(complex)), "got complex128"),
        (dict(images=IMAGES[:, 0, 0]), r"got uint8 \[6, 3\]"),
        (dict(images=IMAGES[:0]), r"got uint8 \[0, 20"),
        (
            dict(images=np.moveaxis(IMAGES, -1, 1)),
            r"as if their channels came first; .*numpy.moveaxis\(images, 1, -1\)",
        ),
        (dict(images=np.zeros((5, 13, 64, 64), np.uint16)), "as if their channels came first"),
        (dict(images=np.zeros((5, 1, 28, 28), np.uint8)), "as if their channels came first"),
        (dict(images=np.zeros((64, 48, 3), np.uint8)), r"looks like one image; .*image\[None\]"),
        (dict(pictures=IMAGES), "has no array 'images', only pictures; name it behind a #"),
        (dict(images=IMAGES, labels=LABELS[:5]), r"6 images need as many labels, got labels of shape \[5\]"),
        (dict(images=IMAGES, groups=LABELS[:5]), r"6 images need as many groups"),
        (dict(images=IMAGES, labels=LABELS / 2), "labels must be integers or text, one an image, got float64"),
        (
            dict(images=IMAGES, labels=2 * np.eye(6, dtype=int)),
            "labels must be 1 where an image has the label, .* got 2",
        ),
        (
            dict(images=IMAGES, labels=np.zeros((6, 2, 2), int)),
            r"labels must be integers or text, .* int64 \[6, 2, 2\]",
        ),
        (dict(images=IMAGES, targets=np.zeros(5)), "6 images need as many targets, got targets of shape"),
        (dict(images=IMAGES, labels=LABELS, class_names=["a", "b"]), "labels are -1 to 2, for 2 class names"),
        (dict(images=IMAGES, labels=LABELS - 1), "labels are -2 to 1"),
    ],
)
def test_arrays_that_are_no_images_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        array_splits(f"{tmp_path}/a.npz")


@pytest.mark.parametrize(
    "shape", [(5, 9, 9, 200), (5, 64, 64, 13), (5, 11, 15, 200), (5, 8, 8, 3), (5, 28, 28), (9, 4, 4)]
)
def test_images_with_their_channels_last_are_taken(tmp_path, shape):
    np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    assert array_splits(f"{tmp_path}/a.npy")["train"].read(0)[0].shape == (*shape, 1)[1:4]


@pytest.mark.parametrize("ending", WRITERS)
def test_damaged_files_are_told(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    WRITERS[ending](path, IMAGES)
    file = path / "images/zarr.json" if ending == "zarr" else path
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match=rf"a\.{ending}"):
        array_splits(str(path))
    file.write_bytes(b"no arrays")
    with pytest.raises(ValueError, match=rf"a\.{ending}"):
        array_splits(str(path))


def test_a_damaged_chunk_is_one_image_that_cannot_be_decoded(tmp_path):
    write_h5(tmp_path / "a.h5", IMAGES)
    import h5py

    with h5py.File(tmp_path / "a.h5") as file:
        chunk = file["images"].id.get_chunk_info(2)
    data = bytearray((tmp_path / "a.h5").read_bytes())
    data[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    (tmp_path / "a.h5").write_bytes(data)
    source = array_splits(f"{tmp_path}/a.h5")["train"]
    np.testing.assert_array_equal(source.read(1)[0], IMAGES[1])
    with pytest.raises(UndecodableImage, match=r"a\.h5\[2\]"):
        source.read(2)


def test_no_pickle_is_loaded(tmp_path):
    np.save(tmp_path / "a.npy", np.array([IMAGES, None], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", images=np.array([IMAGES, None], dtype=object))
    for ending in ("npy", "npz"):
        with pytest.raises(ValueError, match=rf"a\.{ending}.*(Python objects|object arrays|Object arrays)"):
            array_splits(f"{tmp_path}/a.{ending}")


@pytest.mark.parametrize("package, ending, extra", [("h5py", "h5", "hdf5"), ("zarr", "zarr", "zarr")])
def test_a_missing_library_is_named(tmp_path, monkeypatch, package, ending, extra):
    (tmp_path / f"a.{ending}").touch()
    imported = builtins.__import__

    def without(name, *args, **options):
        if name == package:
            raise ImportError(name)
        return imported(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=rf"needs {package}: pip install 'ssl_jax\[{extra}\]'"):
        array_splits(f"{tmp_path}/a.{ending}")

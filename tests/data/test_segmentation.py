"""Pairs of images and masks: which are found, how their values are read, what is refused."""

import dataclasses
import re

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from ssl_jax import data
from ssl_jax.data.formats import UndecodableImage
from ssl_jax.data.mask_files import read_mask, stem
from ssl_jax.data.pipeline import ImagesError
from ssl_jax.data.segmentation import class_names, masked, read_masks, read_pairs

RNG = np.random.default_rng(0)


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image[..., ::-1] if image.ndim == 3 else image)


@pytest.fixture
def folders(tmp_path):
    """Two pairs of 12 x 8 pixels: the left half red and of class 1, the right half black; not counted in a/one, of
    class 0 in two."""
    image, mask = np.zeros((12, 8, 3), np.uint8), np.full((12, 8), 255, np.uint8)
    image[:, :4, 0], mask[:, :4] = 200, 1
    for name in ("a/one", "two"):
        write(tmp_path / "images" / f"{name}.bmp", image)
        write(tmp_path / "masks" / f"{name}.png", mask)
    write(tmp_path / "masks" / "two.png", mask % 255)
    return tmp_path / "images", tmp_path / "masks"


def pairs_of(folders):
    return masked(data.folder(folders[0]), folders[1])


def read(pairs, size, values=()):
    """(images, masks, names of the images)"""
    masks = read_masks(pairs, size, values)
    found = list(read_pairs(pairs, masks, size, 2))
    rows = np.concatenate([rows for _, rows in found])
    names = [pairs.images.image_name(int(index)) for index in masks.rows[rows]]
    return np.concatenate([images for images, _ in found]), masks.masks[rows], names


def test_pairs_are_found_by_name_and_resized_each_in_its_way(folders):
    images, masks, names = read(pairs_of(folders), (6, 6))
    assert names == ["a/one.bmp", "two.bmp"] and images.shape == (2, 6, 6, 3)
    np.testing.assert_array_equal(images[:, :, :3], np.broadcast_to([200, 0, 0], (2, 6, 3, 3)))
    # No class in between: none is averaged.
    np.testing.assert_array_equal(np.unique(masks[0]), [1, 255])
    np.testing.assert_array_equal(np.unique(masks[1]), [0, 1])
    np.testing.assert_array_equal(masks[0, :, :3], 1)


def test_the_size_of_the_files_is_left_as_it_is(folders):
    image, mask = RNG.integers(0, 256, (12, 8, 3), np.uint8), RNG.integers(0, 5, (12, 8), np.uint8)
    write(folders[0] / "two.bmp", image)
    write(folders[1] / "two.png", mask)
    images, masks, _ = read(pairs_of(folders), (12, 8))
    np.testing.assert_array_equal(images[1], image)
    np.testing.assert_array_equal(masks[1], mask)


def test_images_without_a_mask_are_left_out_and_counted(folders):
    write(folders[0] / "three.bmp", np.zeros((12, 8, 3), np.uint8))
    (folders[1] / "two.png").rename(folders[1] / "other.png")
    pairs = pairs_of(folders)
    assert pairs.without == 2 and len(pairs.images) == 1
    assert read(pairs, (6, 6))[2] == ["a/one.bmp"]


def test_damaged_images_and_masks_are_named_and_left_out(folders, caplog):
    for name in ("three", "four"):
        write(folders[0] / f"{name}.bmp", np.zeros((12, 8, 3), np.uint8))
        write(folders[1] / f"{name}.png", np.ones((12, 8), np.uint8))
    (folders[0] / "two.bmp").write_bytes(b"BM")
    (folders[1] / "three.png").write_bytes((folders[1] / "four.png").read_bytes()[:50])
    assert read(pairs_of(folders), (6, 6))[2] == ["a/one.bmp", "four.bmp"]
    assert re.search(r"skipped two\.bmp", caplog.text) and re.search(r"skipped .*three\.png", caplog.text)
    for path in folders[1].rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ImagesError, match="none of the 4 masks of"):
        read_masks(pairs_of(folders), (6, 6))


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda i, m: [path.unlink() for path in m.rglob("*.png")],
            "no image of .* has a mask in .*masks, which has no",
        ),
        (
            lambda i, m: [path.rename(path.with_name(f"{path.stem}_mask.png")) for path in m.rglob("*.png")],
            r"which has a/one_mask\.png, two_mask\.png; the mask of a/one\.bmp is a/one\.png, or \.tif",
        ),
        (lambda i, m: write(m / "two.tif", np.zeros((12, 8), np.uint8)), r"two\.png and two\.tif in .* keep one"),
        (lambda i, m: (m / "two.png").rename(m / "two.jpg"), r"two\.jpg is a mask with a loss.* save masks as PNG"),
        (
            lambda i, m: write(m / "two.png", np.zeros((12, 9), np.uint8)),
            r"two\.bmp is 12 x 8 pixels, but .*two\.png is 12 x 9; make the mask again",
        ),
        (
            lambda i, m: write(m / "two.png", np.zeros((12, 8, 3), np.uint8)),
            r"two\.png has 3 channels.*save it as a gray",
        ),
        (
            lambda i, m: write(m / "two.png", np.full((12, 8), 300, np.uint16)),
            r"two\.png has the value 300, and masks have 0 to 255; mask_values are",
        ),
    ],
)
def test_what_does_not_fit_is_named(folders, change, message):
    change(*folders)
    with pytest.raises(ValueError, match=message):
        read(pairs_of(folders), (6, 6))


def test_a_missing_folder_is_named(folders):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        pairs_of((folders[0], folders[0] / "nowhere"))


@pytest.mark.parametrize("ending", ["png", "gif", "bmp", "tif", "npy"])
def test_values_are_read_as_they_are_stored(tmp_path, ending):
    mask, path = RNG.integers(0, 4, (9, 7), np.uint8), tmp_path / f"mask.{ending}"
    if ending == "npy":
        np.save(path, mask)
    elif ending == "tif":
        tifffile.imwrite(path, mask.astype(np.int16))
    else:
        image = Image.fromarray(mask, mode="P")
        image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9] + [0] * 12)
        image.save(path)
    np.testing.assert_array_equal(read_mask(path), mask)


def test_one_bit_and_sixteen_bits_are_read_as_they_are_stored(tmp_path):
    mask = RNG.integers(0, 2, (9, 7), np.uint8)
    Image.fromarray(mask.astype(bool)).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "bits.png"), mask)
    write(tmp_path / "wide.png", 1000 * mask.astype(np.uint16))
    np.testing.assert_array_equal(read_mask(tmp_path / "wide.png"), 1000 * mask.astype(np.int32))
    Image.fromarray(np.zeros((9, 7, 4), np.uint8)).save(tmp_path / "alpha.png")
    with pytest.raises(ValueError, match="has 4 channels"):
        read_mask(tmp_path / "alpha.png")
    (tmp_path / "bits.png").write_bytes(b"GIF")
    with pytest.raises(UndecodableImage, match=r"bits\.png"):
        read_mask(tmp_path / "bits.png")


def test_masks_of_the_images_of_a_list(folders):
    path = folders[0] / "list.csv"
    path.write_text("path,group\na/one.bmp,x\ntwo.bmp,y\n")
    pairs = masked(data.open_data(str(path)), folders[1])
    assert read(pairs, (6, 6))[2] == ["a/one.bmp", "two.bmp"] and pairs.images.groups.tolist() == ["x", "y"]


def test_masks_of_files_with_several_images(tmp_path):
    volume = RNG.integers(0, 3, (4, 6, 5), np.uint8)
    for folder, pages in (("images", 40 * volume), ("masks", volume)):
        (tmp_path / folder).mkdir()
        with tifffile.TiffWriter(tmp_path / folder / "scan.tif") as file:
            for page in pages:
                file.write(page, contiguous=False)
    source = data.folder(tmp_path / "images", channels=1, pages="images")
    pairs = masked(source, tmp_path / "masks")
    images, masks, names = read(pairs, (6, 5))
    assert names == [f"scan.tif#{k}" for k in range(4)]
    np.testing.assert_array_equal(images[..., 0], 40 * volume)
    np.testing.assert_array_equal(masks, volume)


def plain(*values):
    """Images whose masks have one value each."""
    pairs = masked(np.zeros((len(values), 4, 4, 1), np.uint8), np.zeros((len(values), 4, 4), np.uint8))
    return dataclasses.replace(pairs, mask=lambda k: np.full((4, 4), values[k]))


def names_of(*values, mask_values=(), names=()):
    return class_names([read_masks(plain(*values), (4, 4), mask_values)], mask_values, names)


def test_classes_are_those_that_the_masks_have():
    assert names_of(0, 2, 1, 255) == ("0", "1", "2")
    assert names_of(0, 2, names=("sky", "sea", "land", "ice")) == ("sky", "sea", "land", "ice")
    assert names_of(0, 255, mask_values=(0, 255)) == ("0", "1")
    assert names_of(7, -1, 255, mask_values=(-1, 7, 9), names=("a", "b", "c")) == ("a", "b", "c")
    masks = read_masks(plain(7, -1, 255), (4, 4), (-1, 7)).masks
    np.testing.assert_array_equal(masks[:, 0, 0], [1, 0, 255])
    train, test = (read_masks(plain(*values), (4, 4)) for values in ((0, 1), (0, 2)))
    assert class_names([train, test]) == ("0", "1", "2")


@pytest.mark.parametrize(
    "values, options, message",
    [
        ((0, 255), {}, r"only the values 0, 255, and 255 is for pixels .* if it is the object, give mask_values=0,255"),
        ((0, 255), {"names": ("a", "b")}, "give mask_values=0,255"),
        ((255, 255), {}, "only the values 255, .*give mask_values=0,255"),
        ((0, 0), {}, "only the class 0; there is nothing to tell apart"),
        (
            (0, 128),
            {},
            "mask 1 has the value 128, and no mask has 1; give mask_values=0,128 if these are classes 0 to 1",
        ),
        ((0, 3), {"names": ("a", "b")}, "mask 1 has the value 3, but there are 2 names of classes"),
        ((0, 128), {"mask_values": (0, 255)}, "mask 1 has the value 128, and masks have 0, 255"),
        ((0, 0), {"mask_values": (0, 255)}, "of the values 0, 255 the masks have only 0; there is nothing"),
        ((0, 1), {"mask_values": (0, 1), "names": ("a",)}, "2 values of masks need as many names of classes, got a"),
        ((0, 1), {"names": ("a", "a")}, "names of classes must be different and not empty, got 'a', 'a'"),
        ((0, 1), {"mask_values": (1, 1)}, r"mask_values must be 2 to 255 different integers.*got \(1, 1\)"),
        ((0, 0.5), {}, r"mask 1 has the value 0\.5"),
    ],
)
def test_values_that_look_as_if_they_were_no_classes_are_refused(values, options, message):
    with pytest.raises(ValueError, match=message):
        names_of(*values, **options)


@pytest.mark.parametrize(
    "masks, message",
    [
        (
            np.zeros((3, 4, 4), np.uint8),
            r"masks of 2 images must be integers \[2, height, width\], got uint8 \[3, 4, 4\]",
        ),
        (np.zeros((2, 4, 4), np.float32), "must be integers"),
        (np.zeros((2, 4, 4, 1), np.uint8), "must be integers"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(masks, message):
    with pytest.raises(ValueError, match=message):
        masked(np.zeros((2, 4, 4, 3), np.uint8), masks)


def test_windows_are_refused():
    large = data.windows(np.zeros((2, 16, 16, 1), np.uint8), 8)
    with pytest.raises(ValueError, match="gives windows of larger images, which have no masks of their own"):
        masked(large, np.zeros((len(large), 8, 8), np.uint8))


def test_digests_tell_masks_and_images_apart(folders):
    images, masks = np.zeros((2, 4, 4, 1), np.uint8), np.zeros((2, 4, 4), np.uint8)
    found = {masked(images, masks).digest(), masked(images + 1, masks).digest(), masked(images, masks + 1).digest()}
    assert len(found) == 3 and masked(images, masks).digest() in found
    before = pairs_of(folders).digest()
    (folders[1] / "two.png").unlink()
    assert pairs_of(folders).digest() != before


@pytest.mark.parametrize(
    "name, expected",
    [
        ("scans/1.JPG", "scans/1"),
        ("scans/1.nii.gz#12", "scans/1#12"),
        ("t.01", "t.01"),
        ("7", "7"),
        ("../../etc/x.png", "etc/x"),
        ("/data/x.tif", "data/x"),
    ],
)
def test_stems_stay_below_their_folder(name, expected):
    assert stem(name) == expected

import cv2
import numpy as np
import pytest

from ssl_jax.data.formats import UndecodableImage
from ssl_jax.data.segmentation import decode_mask, load_masked

RNG = np.random.default_rng(0)


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image[..., ::-1] if image.ndim == 3 else image)


@pytest.fixture
def folders(tmp_path):
    """Two pairs of 12 x 8 pixels: the left half red and of class 1, the right half black and of class 255."""
    image, mask = np.zeros((12, 8, 3), np.uint8), np.full((12, 8), 255, np.uint8)
    image[:, :4, 0], mask[:, :4] = 200, 1
    for name in ("a/one", "two"):
        write(tmp_path / "images" / f"{name}.bmp", image)
        write(tmp_path / "masks" / f"{name}.png", mask)
    write(tmp_path / "masks" / "two.png", mask // 255 * 7)
    return tmp_path / "images", tmp_path / "masks"


def test_pairs_are_read_by_name_and_resized_each_in_its_way(folders):
    images, masks = load_masked(*folders, image_size=(6, 6))
    assert images.shape == (2, 6, 6, 3)
    np.testing.assert_array_equal(images[:, :, :3], np.broadcast_to([200, 0, 0], (2, 6, 3, 3)))
    np.testing.assert_array_equal(images[:, :, 3:][..., 1:], 0)
    # No class in between: none is averaged.
    np.testing.assert_array_equal(np.unique(masks[0]), [1, 255])
    np.testing.assert_array_equal(np.unique(masks[1]), [0, 7])
    np.testing.assert_array_equal(masks[0, :, :3], 1)
    gray, _ = load_masked(*folders, image_size=(24, 16), channels=1)
    assert gray.shape == (2, 24, 16, 1)
    assert gray[0, 0, 0, 0] == 60


def test_the_size_of_the_files_is_left_as_it_is(folders):
    image = RNG.integers(0, 256, (12, 8, 3), np.uint8)
    mask = RNG.integers(0, 5, (12, 8), np.uint8)
    write(folders[0] / "two.bmp", image)
    write(folders[1] / "two.png", mask)
    images, masks = load_masked(*folders, image_size=(12, 8))
    np.testing.assert_array_equal(images[1], image)
    np.testing.assert_array_equal(masks[1], mask)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda i, m: (i / "two.bmp").unlink(),
            "1 of 2 masks have no image of the same name: two; put each into .*images",
        ),
        (
            lambda i, m: (m / "two.png").unlink(),
            "1 of 2 images have no mask of the same name: two; put each into .*masks",
        ),
        (lambda i, m: write(i / "two.png", np.zeros((12, 8, 3), np.uint8)), "two.bmp and .*two.png have the same name"),
        (lambda i, m: write(m / "two.png", np.zeros((12, 9), np.uint8)), "two.bmp is 12x8 pixels, but its mask 12x9"),
        (lambda i, m: write(m / "two.png", np.zeros((12, 8, 3), np.uint8)), "two.png is not gray.*a mask must be gray"),
        (lambda i, m: write(m / "two.png", np.zeros((12, 8), np.uint16)), "two.png is gray, with 16 bits; a mask"),
        (lambda i, m: [path.unlink() for path in i.rglob("*.bmp")], "no files in .*images' that end in .avif, .bmp"),
    ],
)
def test_what_does_not_fit_is_named(folders, change, message):
    change(*folders)
    with pytest.raises(ValueError, match=message):
        load_masked(*folders, image_size=(6, 6))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        load_masked(tmp_path / "nowhere", tmp_path, image_size=(6, 6))


def test_palettes_and_one_bit_are_not_read_as_something_else():
    """OpenCV would give the palette's colors, and 255 for 1."""
    _, data = cv2.imencode(".png", np.zeros((4, 4), np.uint8))
    data = data.tobytes()
    with pytest.raises(ValueError, match=r"a\.png is a PNG with a palette.*Image\.fromarray"):
        decode_mask(data[:25] + b"\3" + data[26:], "a.png")
    _, bits = cv2.imencode(".png", np.zeros((4, 4), np.uint8), [cv2.IMWRITE_PNG_BILEVEL, 1])
    with pytest.raises(ValueError, match="gray, with 1 bits"):
        decode_mask(bits.tobytes(), "a.png")


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: b"BM" + data, lambda data: data[:40]])
def test_broken_masks_are_named(damage):
    _, data = cv2.imencode(".png", np.zeros((4, 4), np.uint8))
    with pytest.raises(UndecodableImage, match=r"a\.png: "):
        decode_mask(damage(data.tobytes()), "a.png")

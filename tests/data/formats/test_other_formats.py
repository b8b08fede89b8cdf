"""JPEG 2000, AVIF, HEIC and NumPy files: values equal to the writing library's."""

import imagecodecs
import numpy as np
import pillow_heif
import pytest
from PIL import Image

from ssl_jax.data.formats import UndecodableImage, look, open_image, read_image

RNG = np.random.default_rng(0)
HEIGHT, WIDTH = 40, 56
SMOOTH = np.add.outer(np.arange(HEIGHT), np.arange(WIDTH))


def read(path, channels=None, **options):
    return read_image(path, "one", channels, **options)


def values(dtype, *shape, bits=0):
    kind = np.dtype(dtype)
    bits = bits or 8 * kind.itemsize
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if kind.kind == "i" else (0, 2**bits - 1)
    return RNG.integers(low, high, shape, kind, endpoint=True)


@pytest.mark.parametrize("form", ["JP2", "J2K"])
@pytest.mark.parametrize("bands", [1, 2, 3, 4, 5, 13])
@pytest.mark.parametrize(
    "dtype, bits, as_read", [("u1", 8, "u1"), ("u2", 12, "u2"), ("u2", 16, "u2"), ("i2", 16, "i2")]
)
def test_jpeg_2000(tmp_path, form, bands, dtype, bits, as_read):
    image = values(dtype, HEIGHT, WIDTH, bands, bits=bits)
    stored = image[..., 0] if bands == 1 else image
    data = imagecodecs.jpeg2k_encode(stored, level=0, codecformat=form, bitspersample=bits, reversible=True)
    path = tmp_path / "one.jp2"
    path.write_bytes(data)
    found = read(path, None, bands=range(bands))
    assert found.dtype == as_read
    np.testing.assert_array_equal(found, image)


def test_alpha_of_jpeg_2000_is_what_the_file_says(tmp_path):
    """Pillow says that its fourth band is alpha, imagecodecs says nothing of it."""
    image = values("u1", HEIGHT, WIDTH, 4)
    Image.fromarray(image).save(tmp_path / "one.jp2", irreversible=False)
    share = image[..., 3:] / 255
    np.testing.assert_allclose(read(tmp_path / "one.jp2", 3), image[..., :3] * share + 255 * (1 - share), atol=0.501)
    np.testing.assert_array_equal(read(tmp_path / "one.jp2", 4), image)
    (tmp_path / "two.jp2").write_bytes(imagecodecs.jpeg2k_encode(image, level=0))
    np.testing.assert_array_equal(read(tmp_path / "two.jp2"), image)


@pytest.mark.parametrize("bits", [8, 10, 12])
@pytest.mark.parametrize("bands", [1, 3, 4])
def test_avif(tmp_path, bits, bands):
    image = values("u1" if bits == 8 else "u2", HEIGHT, WIDTH, bands, bits=bits)
    stored = image[..., 0] if bands == 1 else image
    path = tmp_path / "one.avif"
    path.write_bytes(imagecodecs.avif_encode(stored, level=100, bitspersample=bits))  # without loss
    found = read(path, bands if bands == 4 else None)
    assert found.dtype == image.dtype
    np.testing.assert_array_equal(found, image)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_avif_is_turned_as_pillow_turns_it(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "one.avif"
    Image.fromarray(np.stack([SMOOTH * 2] * 3, -1).astype(np.uint8)).save(path, exif=exif, quality=100)
    turned = {1: 0, 3: 2, 6: -1, 8: 1}
    found = read(path)[..., 0].astype(int)
    np.testing.assert_allclose(found, np.rot90(SMOOTH * 2, turned[orientation]), atol=3)


@pytest.mark.parametrize("mode, bits", [("RGB", 8), ("RGB;10", 10), ("RGB;12", 12), ("L", 8), ("RGBA", 8)])
def test_heic_keeps_its_bits(tmp_path, mode, bits):
    """Against pillow_heif's own decoding: it writes without loss neither all modes nor all bits."""
    bands = {"L": 1, "RGB": 3, "RGBA": 4}[mode.split(";")[0]]
    image = np.stack([SMOOTH * (2**bits // 100)] * bands, -1).astype(np.uint8 if bits == 8 else np.uint16)
    path = tmp_path / "one.heic"
    stored = image if bits == 8 else image << (16 - bits)
    pillow_heif.options.SAVE_HDR_TO_12_BIT = bits == 12
    try:
        given = mode if bits == 8 else "RGB;16"
        pillow_heif.encode(given, (WIDTH, HEIGHT), np.ascontiguousarray(stored).tobytes(), path, quality=-1)
    finally:
        pillow_heif.options.SAVE_HDR_TO_12_BIT = False
    expected = np.asarray(pillow_heif.open_heif(path, convert_hdr_to_8bit=False, hdr_to_16bit=False))
    found = read(path, 4 if bands == 4 else None)
    assert found.dtype == image.dtype
    np.testing.assert_array_equal(found, expected if expected.ndim == 3 else expected[..., None])
    np.testing.assert_allclose(found[..., :1].astype(int), image[..., :1], atol=2**bits / 50)


@pytest.mark.parametrize(
    "dtype, as_read",
    [("u1", "u1"), ("u2", "u2"), ("i2", "i2"), ("i1", "i2"), (">u2", "u2"), ("f4", "f4"), ("f8", "f4"), ("f2", "f4")],
)
@pytest.mark.parametrize("bands", [0, 1, 3, 13])
def test_arrays(tmp_path, dtype, as_read, bands):
    shape = (HEIGHT, WIDTH, bands) if bands else (HEIGHT, WIDTH)
    image = RNG.normal(size=shape).astype(dtype) if "f" in dtype else values(dtype[-2:], *shape).astype(dtype)
    np.save(tmp_path / "one.npy", image)
    found = read(tmp_path / "one.npy")
    assert found.dtype == as_read
    np.testing.assert_array_equal(found, image.reshape(HEIGHT, WIDTH, -1).astype(as_read))
    with open_image(tmp_path / "one.npy") as opened:
        assert opened.windowed
        np.testing.assert_array_equal(opened.read(3, 4, 20, 30), found[3:23, 4:34])


def test_true_and_false_become_1_and_0(tmp_path):
    image = values("u1", HEIGHT, WIDTH) > 100
    np.save(tmp_path / "one.npy", image)
    found = read(tmp_path / "one.npy")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[..., 0], image)


@pytest.mark.parametrize(
    "array, reason",
    [
        (np.zeros(9), r"shape \[9\]; one image is \[height, width\]"),
        (np.zeros((2, 9, 9, 3)), r"a stack of images is read if the file itself is given"),
        (np.zeros((13, 64, 64)), r"bands come last, so save image.transpose\(1, 2, 0\)"),
        (np.zeros((9, 9), complex), "its values are complex128"),
        (np.zeros((9, 9), [("a", "f4"), ("b", "f4")]), "its values are"),
        (np.zeros((9, 0)), "its header says that it has 0 x 9 pixels"),
    ],
)
def test_arrays_that_are_no_image(tmp_path, array, reason):
    np.save(tmp_path / "one.npy", array)
    with pytest.raises(UndecodableImage, match=reason):
        read(tmp_path / "one.npy")


def test_no_pickle_is_loaded(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (tmp_path.joinpath("loaded").touch, ())

    np.save(tmp_path / "one.npy", np.array([[Harmful()]]), allow_pickle=True)
    with pytest.raises(UndecodableImage, match="Python objects, which are not loaded"):
        read(tmp_path / "one.npy")
    assert not (tmp_path / "loaded").exists()


def test_an_array_of_gigabytes_is_read_by_windows(tmp_path):
    array = np.lib.format.open_memmap(tmp_path / "one.npy", "w+", np.uint16, (40_000, 40_000))  # sparse on disk
    array[30_000, 20_000] = 7
    del array
    with pytest.raises(UndecodableImage, match="40000 x 40000 pixels"):
        read(tmp_path / "one.npy")
    with open_image(tmp_path / "one.npy") as opened:
        assert opened.read(29_999, 19_999, 3, 3)[..., 0].tolist() == [[0, 0, 0], [0, 7, 0], [0, 0, 0]]


def test_the_contents_tell_the_format_whatever_the_name(tmp_path):
    image = values("u1", HEIGHT, WIDTH, 3)
    for form, name in (("PNG", "one.tif"), ("TIFF", "one.png"), ("PNG", "one.dcm")):
        Image.fromarray(image).save(tmp_path / name, form)
        np.testing.assert_array_equal(read(tmp_path / name), image)
        assert look(tmp_path / name).count == 1

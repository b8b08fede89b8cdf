"""Decoding, against Pillow's own reading of files that Pillow wrote."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from ssl_jax.data.formats import UndecodableImage, decode_image
from ssl_jax.data.formats.photos import exif_orientation

ORIENTATION = 0x0112
Y, X = np.mgrid[:40, :64]
RGB = np.stack([X * 4, Y * 6, (X + Y) * 2], axis=-1).astype(np.uint8)  # smooth, unlike itself however it is turned
COLOR = Image.fromarray(RGB)
ALPHA = np.where(X < 20, 0, np.minimum(X * 5, 255)).astype(np.uint8)  # from none to all
TRANSPARENT = Image.fromarray(np.dstack([RGB, ALPHA]))
PALETTE = COLOR.quantize(32)


def encode(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def encode_cv2(extension: str, image: np.ndarray) -> bytes:
    """For 16-bit color, which Pillow cannot write. `image`: BGR(A)."""
    return cv2.imencode(extension, image)[1].tobytes()


def reference(data: bytes, channels: int) -> np.ndarray:
    """Pillow's: upright, alpha over white, RGB or gray."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return np.asarray(image.convert("RGB" if channels == 3 else "L")).reshape(*image.size[::-1], channels)


FILES = {
    "jpeg": encode(COLOR, "JPEG", quality=95),
    "jpeg, progressive": encode(COLOR, "JPEG", quality=95, progressive=True),
    "jpeg, gray": encode(COLOR.convert("L"), "JPEG", quality=95),
    "jpeg, cmyk": encode(COLOR.convert("CMYK"), "JPEG", quality=95),
    "png": encode(COLOR, "PNG"),
    "png, gray": encode(COLOR.convert("L"), "PNG"),
    "png, gray and alpha": encode(TRANSPARENT.convert("LA"), "PNG"),
    "png, alpha": encode(TRANSPARENT, "PNG"),
    "png, palette": encode(PALETTE, "PNG"),
    "png, palette with a transparent color": encode(PALETTE, "PNG", transparency=3),
    "png, 4-bit palette": encode(COLOR.quantize(8), "PNG", bits=4),
    "png, black and white": encode(COLOR.convert("1"), "PNG"),
    "gif": encode(PALETTE, "GIF"),
    "gif, with a transparent color": encode(PALETTE, "GIF", transparency=3),
    "gif, animated": encode(PALETTE, "GIF", save_all=True, append_images=[Image.new("P", COLOR.size)]),
    "webp": encode(COLOR, "WEBP", lossless=True),
    "webp, alpha": encode(TRANSPARENT, "WEBP", lossless=True, exact=True),
    "webp, animated": encode(COLOR, "WEBP", lossless=True, save_all=True, append_images=[Image.new("RGB", COLOR.size)]),
    "bmp": encode(COLOR, "BMP"),
    "bmp, palette": encode(PALETTE, "BMP"),
    "tiff": encode(COLOR, "TIFF"),
    "tiff, gray, lzw": encode(COLOR.convert("L"), "TIFF", compression="tiff_lzw"),
    "tiff, alpha": encode(TRANSPARENT, "TIFF"),
    "tiff, gray and alpha": encode(TRANSPARENT.convert("LA"), "TIFF"),
    "tiff, cmyk": encode(COLOR.convert("CMYK"), "TIFF"),
    "tiff, palette": encode(PALETTE, "TIFF"),
    "ppm": encode(COLOR, "PPM"),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", FILES)
def test_pixels_are_those_of_pillow(name, channels):
    image = decode_image(FILES[name], channels, name)
    assert image.shape == (40, 64, channels)
    assert image.flags.c_contiguous  # as OpenCV wants its input
    # 1: rounding, of the alpha or of the gray. CMYK and subsampled color become gray by way of different steps.
    tolerance = 4 if channels == 1 and name.startswith("jpeg") else 1
    np.testing.assert_allclose(image.astype(int), reference(FILES[name], channels).astype(int), atol=tolerance)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "form, image",
    [
        ("JPEG", COLOR),
        ("JPEG", COLOR.convert("L")),
        ("PNG", COLOR),
        ("PNG", TRANSPARENT),
        ("WEBP", TRANSPARENT),
        ("TIFF", COLOR),
    ],
)
def test_turned_by_exif_as_pillow_turns_it(form, image, orientation):
    exif = Image.Exif()
    exif[0x010E] = "a tag before it"
    exif[ORIENTATION] = orientation
    data = encode(image, form, exif=exif, **({"lossless": True, "exact": True} if form == "WEBP" else {}))
    decoded = decode_image(data, 3, form)
    assert decoded.shape[:2] == ((40, 64) if orientation <= 4 else (64, 40))
    np.testing.assert_allclose(decoded.astype(int), reference(data, 3).astype(int), atol=1)


@pytest.mark.parametrize("extension", [".png", ".tiff", ".pgm"])
def test_16_bits_stay(extension):
    ramp = np.linspace(0, 65535, 40 * 64).reshape(40, 64).astype(np.uint16)
    for channels in (1, 3, None):
        decoded = decode_image(encode_cv2(extension, ramp), channels, "ramp")
        assert decoded.dtype == np.uint16
        np.testing.assert_array_equal(decoded, np.repeat(ramp[..., None], channels or 1, axis=2))


@pytest.mark.parametrize("extension", [".png", ".tiff", ".ppm"])
def test_color_of_16_bits_stays(extension):
    rgb = RGB.astype(np.uint16) * 256 + RGB[::-1]
    decoded = decode_image(encode_cv2(extension, rgb[..., ::-1]), 3, "color")
    np.testing.assert_array_equal(decoded, rgb)
    gray = decode_image(encode_cv2(extension, rgb[..., ::-1]), 1, "color")
    np.testing.assert_allclose(gray[..., 0], rgb @ [0.299, 0.587, 0.114], atol=0.51)


def test_alpha_of_16_bits_is_over_white():
    rgba = np.dstack([RGB, ALPHA]).astype(np.uint16) * 257 - 1
    rgba[..., 3] += 1  # from none to all
    decoded = decode_image(encode_cv2(".png", rgba[..., [2, 1, 0, 3]]), 3, "alpha")
    share = rgba[..., 3:] / 65535
    np.testing.assert_allclose(decoded, rgba[..., :3] * share + 65535 * (1 - share), atol=0.501)


@pytest.mark.parametrize(
    "name", ["png, alpha", "png, gray and alpha", "webp, alpha", "tiff, alpha", "tiff, gray and alpha"]
)
def test_alpha_that_is_counted_is_kept(name):
    with Image.open(io.BytesIO(FILES[name])) as image:
        whole = np.asarray(image)
    count = whole.shape[2]
    np.testing.assert_array_equal(decode_image(FILES[name], count, name), whole)
    np.testing.assert_array_equal(decode_image(FILES[name], None, name, bands=[count - 1, 0]), whole[..., [-1, 0]])
    assert decode_image(FILES[name], None, name).shape[2] == count - 1


def test_bands_are_not_converted():
    with pytest.raises(UndecodableImage, match=r"has 3 bands, and data.channels=13; .*data.channels=3$"):
        decode_image(FILES["jpeg"], 13, "one")
    with pytest.raises(UndecodableImage, match=r"has 3 bands, 0 to 2; data.bands=\(0, 3\) asks for band 3"):
        decode_image(FILES["jpeg"], None, "one", bands=(0, 3))


def png_of_size(width: int, height: int) -> bytes:
    """A header that promises so many pixels, with next to none behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0" * 9)) + chunk(b"IEND", b"")


BROKEN = {f"{name}, truncated": data[: len(data) * 3 // 4] for name, data in FILES.items() if name != "ppm"} | {
    "empty": b"",
    "text": b"This is not an image, whatever its name says. " * 9,
    "only a jpeg's first bytes": b"\xff\xd8\xff\xe0",
    "png of 3.6 gigapixels": png_of_size(60_000, 60_000),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_decoded_is_named(name):
    with pytest.raises(UndecodableImage) as error:
        decode_image(BROKEN[name], 3, "cats/one.jpg")
    assert error.value.name == "cats/one.jpg"
    assert error.value.reason
    assert "\n" not in error.value.reason


def test_exif_that_is_cut_off_or_nonsense_means_upright():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    whole = exif.tobytes()
    assert exif_orientation(whole) == 6
    assert exif_orientation(whole.removeprefix(b"Exif\0\0")) == 6
    rng = np.random.default_rng(0)
    for length in range(22):
        assert exif_orientation(whole[:length]) == 1
        assert exif_orientation(rng.bytes(length)) == 1
    exif[ORIENTATION] = 9  # there is none
    assert exif_orientation(exif.tobytes()) == 1


def smooth(height, width):
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize("by", [1, 2, 4, 8])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_is_decoded_at_a_part_of_its_size(by, channels, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(smooth(320, 480)).save(file, "JPEG", quality=95, exif=exif)
    asked = []

    def reduce(height, width):
        asked.append((height, width))
        return by

    whole = decode_image(file.getvalue(), channels, "a")
    small = decode_image(file.getvalue(), channels, "a", reduce=reduce)
    assert by == 1 or asked[-1] == whole.shape[:2] == ((320, 480) if orientation == 1 else (480, 320))
    rows, columns = (side // by for side in whole.shape[:2])
    means = whole.reshape(rows, by, columns, by, channels).mean(axis=(1, 3))
    assert small.shape == means.shape and np.abs(small - means).max() < 4


def test_other_formats_are_decoded_whole():
    file = io.BytesIO()
    Image.fromarray(smooth(50, 40)).save(file, "PNG")
    np.testing.assert_array_equal(decode_image(file.getvalue(), 3, "a", reduce=lambda h, w: 8), smooth(50, 40))

"""Sizes of images from their headers, against Pillow's reading of files that Pillow wrote."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ssl_jax.data.formats import UndecodableImage, decode_image, read_image, stored
from ssl_jax.data.formats.header import read_header

WIDTH, HEIGHT = 300, 41  # beyond a byte and within one
COLOR = Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))


def encode(form: str, image: Image.Image = COLOR, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_size(width: int, height: int) -> bytes:
    """Whole and valid, of one bit a pixel, all zeros: a thousandth of the pixels' bytes."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((width + 7) // 8 + 1) * height)
    chunks = [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


FILES = {
    "bmp": encode("BMP"),
    "gif": encode("GIF"),
    "jpeg": encode("JPEG"),
    "jpeg, progressive": encode("JPEG", progressive=True),
    "jpeg, with a thumbnail's segments before": encode("JPEG", exif=Image.Exif(), comment=b"\xff\xc0" + bytes(15)),
    "jpeg, fill bytes between the markers": encode("JPEG").replace(b"\xff\xdb", b"\xff\xff\xff\xdb", 1),
    "jpeg, junk between the markers": encode("JPEG").replace(b"\xff\xdb", b"junk\xff\xdb", 1),
    "png": encode("PNG"),
    "png, bytes after its end": encode("PNG") + b"more",
    "pnm": encode("PPM"),
    "pnm, with comments": b"P5 # one\n#two\n300\t# three\n 41 255\n" + bytes(300 * 41),
    "pnm, comments that a carriage return ends": b"P5 #9 9\r300 #9\r\n\v41 255\n" + bytes(300 * 41),
    "webp, lossy": encode("WEBP"),
    "webp, lossless": encode("WEBP", lossless=True),
    "webp, extended": encode("WEBP", COLOR.convert("RGBA"), exif=b"Exif\0\0" + bytes(9), lossless=True),
    "bmp, top down": encode("BMP").replace(struct.pack("<i", HEIGHT), struct.pack("<i", -HEIGHT), 1),
}


@pytest.mark.parametrize("name", FILES)
def test_sizes_are_those_of_the_image(name):
    assert read_header(FILES[name])[:2] == (WIDTH, HEIGHT)
    assert decode_image(FILES[name], 3, name).shape == (HEIGHT, WIDTH, 3)  # it is OpenCV's size, too


@pytest.mark.parametrize("name", FILES)
def test_a_header_cut_anywhere_is_said(name):
    with pytest.raises(ValueError, match=r"broken|truncated"):
        read_header(FILES[name][:6])
    for length in range(40, 400):
        # Of pixels that are missing the header says nothing. Digits that are missing from text cannot be seen.
        with contextlib.suppress(ValueError):
            assert read_header(FILES[name][:length])[:2] == (WIDTH, HEIGHT)


@pytest.mark.parametrize(
    "data, message",
    [
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99), "format that is read"),  # JPEG 2000, which OpenCV would open
        (b"#?RADIANCE\n" + bytes(99), "format that is read"),
        (png_of_size(0, 5), "0 x 5 pixels"),
        (b"P5 0 41 255\n", "0 x 41 pixels"),
        (encode("JPEG").replace(struct.pack(">HH", HEIGHT, WIDTH), bytes(4), 1), "0 x 0 pixels"),
        (b"P5 300# 99999\n41 255\n", "format that is read"),  # 300 x 99999 for OpenCV
        (FILES["png"].replace(b"IHDR", b"tEXt", 1), "without a header"),
    ],
)
def test_what_is_impossible_is_said(data, message):
    with pytest.raises(ValueError, match=message):
        read_header(data)


@pytest.mark.parametrize("position", [8, 33])  # of the header's length and the one after it
def test_a_chunk_longer_than_the_file_is_refused_before_memory_is_taken_for_it(position):
    data = bytearray(FILES["png"])
    data[position] |= 0x40  # a gigabyte; OpenCV would take it and fill it
    with pytest.raises(UndecodableImage, match="a chunk is longer than the file"):
        decode_image(bytes(data), 3, "one.png")


@pytest.mark.parametrize(
    "data",
    [
        png_of_size(2**15, 2**14),
        encode("GIF").replace(struct.pack("<HH", WIDTH, HEIGHT), b"\xff" * 4, 1),
        b"P5 16384 16384 255\n",
        b"P5 #1 1\r16384 16384 255\n",
    ],
    ids=["png", "gif", "pnm", "pnm, comment"],
)
def test_too_many_pixels_are_refused_with_the_remedy(data):
    assert len(data) < 100_000
    with pytest.raises(UndecodableImage, match=r"x \d+ pixels, .*; no more than 402,653,184 bytes are .* scale it"):
        decode_image(data, 3, "bomb")


def many_scans(count: int, between: bytes = b"") -> bytes:
    """A gray progressive JPEG with restarts whose last scan comes `count` times more, each time after `between`."""
    data = encode("JPEG", Image.new("RGB", (WIDTH, HEIGHT)), progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:2] + b"\xff\xdd\0\x04\0\x01" + data[2:-2] + (between + last) * count + data[-2:]


@pytest.mark.parametrize(
    "between",
    [
        b"",
        b"\xff\xfe\0\x04\xff\xd9",  # a comment that holds an end of the image
        b"\xff\x02\xff\xff",  # none that has a length: libjpeg finds the next marker within what would be 65535 bytes
    ],
)
def test_scans_without_end_are_refused(between):
    """Each takes a few bytes, and the time of a whole image."""
    assert len(many_scans(200, between)) < 10_000
    with pytest.raises(UndecodableImage, match="a JPEG of more than 100 scans"):
        decode_image(many_scans(200, between), 3, "slow")


def test_scans_of_one_color_are_counted_without_progression_too():
    """As libjpeg has it: it reads on after a first scan that is not of all colors, and stops after one that is."""
    data, one = FILES["jpeg"], b"\xff\xda\0\x08\x01\x01\0\0\x3f\0"
    first = data.rindex(b"\xff\xda")
    with pytest.raises(UndecodableImage, match="a JPEG of more than 100 scans"):
        decode_image(data[:first] + one * 200 + data[-2:], 3, "slow")
    more = data[:-2] + one * 200 + data[-2:]
    np.testing.assert_array_equal(decode_image(more, 3, "one"), decode_image(data, 3, "one"))


def test_what_looks_like_scans_and_is_none_of_the_image_is_not_counted():
    looks = b"\xff\xda" * 200
    segment = b"\xff\xe1" + struct.pack(">H", 2 + len(looks)) + looks  # a thumbnail, a map of depths
    for name in ("jpeg", "jpeg, progressive"):
        data = FILES[name]
        expected = decode_image(data, 3, name)
        for more in (data[:2] + segment + data[2:], data + looks, data[:-2] + segment + data[-2:]):  # a film at its end
            np.testing.assert_array_equal(decode_image(more, 3, name), expected)
    assert decode_image(many_scans(80, b"\xff\x02\xff\xff"), 3, "one").shape == (HEIGHT, WIDTH, 3)


def test_the_bound_itself_is_decoded(monkeypatch):
    monkeypatch.setattr(stored, "MAX_IMAGE_BYTES", WIDTH * HEIGHT * 3)
    assert decode_image(FILES["png"], 1, "one").shape == (HEIGHT, WIDTH, 1)
    monkeypatch.setattr(stored, "MAX_IMAGE_BYTES", WIDTH * HEIGHT * 3 - 1)
    with pytest.raises(UndecodableImage, match="scale it down"):
        decode_image(FILES["png"], 1, "one")


def test_too_many_bytes_are_neither_read_nor_decoded(tmp_path, monkeypatch):
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(2**40)  # a terabyte that takes no room
    with pytest.raises(UndecodableImage, match=r"sparse.png: 1,099,511,627,776 bytes; no more than 268,435,456"):
        read_image(tmp_path / "sparse.png", "sparse.png", 3)
    monkeypatch.setattr(stored, "MAX_BYTES", len(FILES["png"]) - 1)
    with pytest.raises(UndecodableImage, match="bytes; no more than"):
        decode_image(FILES["png"], 1, "one")

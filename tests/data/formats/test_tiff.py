"""TIFF files as tifffile and Pillow write them: values equal to what was written, or refused with the remedy."""

import io
import itertools
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
from PIL import Image

from ssl_jax.data.formats import UndecodableImage, look, open_image, read_image

RNG = np.random.default_rng(0)
HEIGHT, WIDTH = 37, 51
# On file -> as read. Values of wide integers are small enough for float32, and too large for 16 bits.
TYPES = {
    **dict(u1="u1", u2="u2", i2="i2", f4="f4"),
    **dict(i1="i2", u4="f4", i4="f4", f2="f4", f8="f4"),
}


def values(dtype: str, *shape: int, rng: np.random.Generator = RNG) -> np.ndarray:
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return rng.normal(size=shape).astype(kind)
    limits = np.iinfo(kind)
    return rng.integers(max(limits.min, -(2**24)), min(limits.max, 2**24), shape, kind, endpoint=True)


@pytest.fixture
def write(tmp_path):
    """write(image, **options of tifffile) -> path"""

    def write(image, **options):
        tifffile.imwrite(tmp_path / "one.tif", image, **options)
        return tmp_path / "one.tif"

    return write


def read(path, channels=None, **options):
    return read_image(path, "one", channels, **options)


LAYOUTS = [
    {},
    {"planar": True},
    {"tile": (16, 32)},
    {"tile": (16, 16), "planar": True},
    {"compression": "zlib", "predictor": True},
    {"compression": "lzw", "rowsperstrip": 5},
    {"compression": "zstd", "tile": (16, 16), "predictor": True},
    {"compression": "packbits", "planar": True},
    {"compression": "lzma"},
    {"byteorder": ">"},
    {"byteorder": ">", "compression": "zlib", "tile": (32, 16), "predictor": True},
    {"bigtiff": True},
    {"bigtiff": True, "byteorder": ">", "planar": True, "compression": "zlib"},
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: " ".join(f"{k}={v}" for k, v in layout.items()))
@pytest.mark.parametrize("dtype", TYPES)
def test_values_are_those_written_in_every_layout(write, dtype, layout):
    options = dict(layout)
    planar = options.pop("planar", False)
    if np.dtype(dtype) == np.float16:
        options.pop("predictor", None)
    for bands in (1, 4, 13):
        image = values(dtype, HEIGHT, WIDTH, bands)
        if bands == 1:
            path = write(image[..., 0], photometric="minisblack", **options)
        elif planar:
            path = write(image.transpose(2, 0, 1), planarconfig="separate", photometric="minisblack", **options)
        else:
            path = write(image, planarconfig="contig", photometric="minisblack", **options)
        found = read(path)
        assert found.dtype == TYPES[dtype]
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found, image.astype(TYPES[dtype]))
        with open_image(path) as opened:
            assert (opened.shape, opened.dtype) == ((HEIGHT, WIDTH, bands), TYPES[dtype])
            np.testing.assert_array_equal(opened.read(5, 7, 30, 40), found[5:35, 7:47])


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (5, 2), (2, 5)])
@pytest.mark.parametrize("bands", [1, 2, 3, 7])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_small_images(write, shape, bands, compression):
    image = values("u2", *shape, bands)
    planar = {} if bands == 1 else {"planarconfig": "contig"}
    stored = image[..., 0] if bands == 1 else image
    path = write(stored, photometric="minisblack", compression=compression, metadata=None, **planar)
    np.testing.assert_array_equal(read(path), image)
    if bands == 1:
        return
    planes = np.ascontiguousarray(image.transpose(2, 0, 1))
    path = write(planes, photometric="minisblack", planarconfig="separate", compression=compression, metadata=None)
    np.testing.assert_array_equal(read(path), image)


@pytest.mark.parametrize("seed", range(40))
def test_a_round_trip_changes_nothing(write, seed):
    rng = np.random.default_rng(seed)
    dtype = rng.choice(["u1", "u2", "i2", "f4"])
    bands = int(rng.choice([2, 3, 4, 5, 8, 13]))
    image = values(dtype, int(rng.integers(2, 90)), int(rng.integers(2, 90)), bands, rng=rng)
    compression = rng.choice([None, "zlib", "lzw", "zstd", "packbits", "lzma"])
    options = dict(
        byteorder=rng.choice(["<", ">"]),
        bigtiff=bool(rng.integers(2)),
        compression=compression,
        predictor=bool(rng.integers(2)) and compression in ("zlib", "lzw", "zstd"),
        photometric="rgb" if bands == 3 and rng.integers(2) else "minisblack",
        extrasamples=None if bands == 3 else ["unspecified"] * (bands - 1),
        **{"tile": (16 * int(rng.integers(1, 4)), 16)}
        if rng.integers(2)
        else {"rowsperstrip": int(rng.integers(1, 90))},
    )
    if options["photometric"] == "minisblack":
        options["extrasamples"] = ["unspecified"] * (bands - 1)
    planar = bool(rng.integers(2))
    stored = image.transpose(2, 0, 1) if planar else image
    found = read(write(stored, planarconfig="separate" if planar else "contig", **options))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, image)


@pytest.mark.parametrize("bits", [1, 2, 4, 9, 10, 12, 14])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_packed_bits(write, bits, photometric):
    """Up to 4 bits are spread over 0 to 255, as in a PNG; others stay as they are."""
    most = 2**bits - 1
    image = RNG.integers(0, most, (HEIGHT, WIDTH), np.uint16 if bits > 8 else np.uint8, endpoint=True)
    path = write(image if bits > 1 else image.astype(bool), bitspersample=bits, photometric=photometric)
    expected = image if photometric == "minisblack" else most - image
    if bits < 8:
        expected = expected * np.uint8(255 // most)
    found = read(path)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found[..., 0], expected)


@pytest.mark.parametrize("dtype, white", [("u1", 255), ("u2", 65535)])
def test_0_may_be_white(write, dtype, white):
    image = values(dtype, HEIGHT, WIDTH)
    np.testing.assert_array_equal(read(write(image, photometric="miniswhite"))[..., 0], white - image)


def test_a_palette_becomes_its_colors(write):
    image = values("u1", HEIGHT, WIDTH)
    colors = values("u2", 3, 256)
    np.testing.assert_array_equal(read(write(image, photometric="palette", colormap=colors)), colors.T[image])
    eight = values("u1", 3, 256).astype(np.uint16)
    for scale in (256, 257):
        found = read(write(image, photometric="palette", colormap=eight * scale))
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, eight.T[image])


RGBA = values("u1", HEIGHT, WIDTH, 4)


@pytest.mark.parametrize("planar", [False, True])
def test_a_fourth_band_is_alpha_only_if_the_file_says_so(write, planar):
    def image(kind):
        return write(
            RGBA.transpose(2, 0, 1) if planar else RGBA,
            photometric="rgb",
            planarconfig="separate" if planar else "contig",
            extrasamples=[kind],
        )

    near_infrared = image("unspecified")
    np.testing.assert_array_equal(read(near_infrared), RGBA)
    np.testing.assert_array_equal(read(near_infrared, bands=(3, 0)), RGBA[..., [3, 0]])
    with pytest.raises(
        UndecodableImage, match=r"4 bands, and data.channels=3; .*data.channels=4, or data.bands=\(0, 1, 2"
    ):
        read(near_infrared, 3)
    straight = image("unassalpha")
    share = RGBA[..., 3:] / 255
    np.testing.assert_allclose(read(straight, 3), RGBA[..., :3] * share + 255 * (1 - share), atol=0.501)
    np.testing.assert_array_equal(read(straight, 4), RGBA)
    np.testing.assert_array_equal(read(straight, bands=(0, 1, 2)), RGBA[..., :3])
    # With alpha multiplied in, what is added is white alone.
    np.testing.assert_array_equal(
        read(image("assocalpha"), 3), np.minimum(RGBA[..., :3] + (255 - RGBA[..., 3:].astype(int)), 255)
    )


def test_alpha_beside_floats_has_to_be_decided(write):
    image = values("f4", HEIGHT, WIDTH, 4)
    path = write(image, photometric="rgb", extrasamples=["unassalpha"])
    with pytest.raises(UndecodableImage, match=r"white is not known; data.channels=4 keeps it, data.bands=\(0, 1, 2\)"):
        read(path, 3)
    np.testing.assert_array_equal(read(path, 4), image)
    np.testing.assert_array_equal(read(path, 3, bands=(0, 1, 2)), image[..., :3])


def test_inks_become_colors(write):
    for dtype, white in (("u1", 255), ("u2", 65535)):
        inks = values(dtype, HEIGHT, WIDTH, 4)
        black = white - inks[..., 3:].astype(np.int64)
        found = read(write(inks, photometric="separated"))
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, black * (white - inks[..., :3].astype(np.int64)) // white)


TURNED = {  # by EXIF's numbers: where row 0 and column 0 of the file belong
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.T,
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image[::-1, ::-1].T,
    8: lambda image: np.rot90(image),
}


@pytest.mark.parametrize("orientation", TURNED)
def test_turned_as_the_file_says(write, orientation):
    image = values("u2", HEIGHT, WIDTH)
    expected = TURNED[orientation](image)
    path = write(image, photometric="minisblack", extratags=[(274, 3, 1, orientation, True)], metadata=None)
    with open_image(path) as opened:
        assert opened.shape == (*expected.shape, 1)
        np.testing.assert_array_equal(opened.read(3, 4, 20, 30)[..., 0], expected[3:23, 4:34])
    np.testing.assert_array_equal(read(path)[..., 0], expected)


STACK = values("u2", 13, HEIGHT, WIDTH)


def test_pages_that_say_nothing_are_refused_until_they_are_told(write):
    for options in ({}, {"metadata": None}, {"compression": "zlib"}, {"metadata": None, "compression": "lzw"}):
        path = write(STACK, photometric="minisblack", **options)
        with pytest.raises(UndecodableImage, match=r"a TIFF of 13 pages.*data.pages=bands.*or data.pages=images"):
            read(path)
        with pytest.raises(UndecodableImage, match="13 pages"):
            look(path)
        np.testing.assert_array_equal(read(path, pages="bands"), STACK.transpose(1, 2, 0))
        assert look(path, "bands").count == 1
        assert look(path, "images").count == 13
        for k in (0, 12, 5):
            np.testing.assert_array_equal(read(path, pages="images", index=k), STACK[k][..., None])
        with pytest.raises(UndecodableImage, match="13 images now, but image 13"):
            read(path, pages="images", index=13)


def test_pages_of_different_sizes(tmp_path):
    path = tmp_path / "one.tif"
    with tifffile.TiffWriter(path) as tif:
        for side in (20, 30):
            tif.write(STACK[0, :side, :side], metadata=None, photometric="minisblack")
    with pytest.raises(UndecodableImage, match=r"2 sets of pages, of different sizes or types.*data.pages=images"):
        read(path)
    with pytest.raises(UndecodableImage, match="cannot be the bands of one image"):
        read(path, pages="bands")
    assert [read(path, pages="images", index=k).shape for k in range(2)] == [(20, 20, 1), (30, 30, 1)]


@pytest.mark.parametrize(
    "kind, compression", [("ome", None), ("ome", "zlib"), ("imagej", None), ("shaped", None), ("shaped", "zlib")]
)
def test_stacks_whose_axes_are_stated(write, kind, compression):
    """C and S are bands, T and Z are images, whatever is said of pages."""
    stack = values("u2", 2, 3, 5, HEIGHT, WIDTH)  # times, slices, channels
    options = {"ome": {"ome": True}, "imagej": {"imagej": True}, "shaped": {}}[kind]
    path = write(stack, metadata={"axes": "TZCYX"}, photometric="minisblack", compression=compression, **options)
    for pages in ("", "bands", "images"):
        assert look(path, pages).count == 6
        for k in (0, 4, 5):
            np.testing.assert_array_equal(read(path, pages=pages, index=k), stack[k // 3, k % 3].transpose(1, 2, 0))
    np.testing.assert_array_equal(read(path, 2, bands=(4, 1), index=1), stack[0, 1, [4, 1]].transpose(1, 2, 0))


def test_color_stacks(write):
    stack = values("u1", 4, HEIGHT, WIDTH, 3)
    for options in ({"ome": True}, {"imagej": True}):
        path = write(stack, metadata={"axes": "ZYXS"}, photometric="rgb", **options)
        np.testing.assert_array_equal(read(path, index=2), stack[2])
        assert look(path).count == 4


def test_ome_files_in_other_files_are_not_opened(tmp_path):
    """Such a file is read as what it holds itself."""
    text = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1"><Image ID="Image:0">'
        '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="51" SizeY="37"'
        ' SizeC="2" SizeZ="1" SizeT="1">'
        '<TiffData FirstC="0" IFD="0" PlaneCount="1"><UUID FileName="one.ome.tif">urn:uuid:1</UUID></TiffData>'
        '<TiffData FirstC="1" IFD="0" PlaneCount="1"><UUID FileName="../secret.tif">urn:uuid:2</UUID></TiffData>'
        "</Pixels></Image></OME>"
    )
    (tmp_path / "folder").mkdir()
    tifffile.imwrite(tmp_path / "secret.tif", STACK[1])
    tifffile.imwrite(tmp_path / "folder" / "one.ome.tif", STACK[0], description=text, metadata=None)
    np.testing.assert_array_equal(read(tmp_path / "folder" / "one.ome.tif"), STACK[0][..., None])


def test_missing_planes_are_no_zeros(tmp_path):
    text = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
        '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="51" SizeY="37"'
        ' SizeC="3" SizeZ="1" SizeT="1">'
        "<TiffData/></Pixels></Image></OME>"
    )
    with tifffile.TiffWriter(tmp_path / "one.ome.tif") as tif:
        for k in range(2):
            tif.write(STACK[k], description=text if k == 0 else None, metadata=None, compression="zlib")
    with pytest.raises(UndecodableImage, match="lacks some of the pages that its metadata list"):
        read(tmp_path / "one.ome.tif")


def test_overviews_and_masks_are_no_images(tmp_path):
    """As a cloud-optimized GeoTIFF has them."""
    image = values("u2", 128, 96, 5)
    path = tmp_path / "one.tif"
    options = dict(tile=(32, 32), photometric="minisblack", planarconfig="contig", metadata=None, compression="zlib")
    with tifffile.TiffWriter(path) as tif:
        tif.write(image, **options)
        tif.write(np.ones((128, 96), bool), subfiletype=4, photometric="mask", metadata=None)
        for step in (2, 4):
            tif.write(image[::step, ::step], subfiletype=1, **options)
    assert look(path).count == 1
    np.testing.assert_array_equal(read(path), image)
    with tifffile.TiffWriter(path) as tif:  # in sub-directories, as OME's pyramids
        tif.write(image, subifds=1, **options)
        tif.write(image[::2, ::2], subfiletype=1, **options)
    np.testing.assert_array_equal(read(path), image)


GDAL = (
    '<GDALMetadata>\n  <Item name="DESCRIPTION" sample="0" role="description">B02</Item>\n  <Item name="DESCRIPTION" '
    'sample="1" role="description">B8A</Item>\n<Item name="OTHER">1</Item></GDALMetadata>'
)


def test_names_of_bands_and_nodata(write):
    image = values("f4", HEIGHT, WIDTH, 2)
    image[3, 4], image[5, 6, 1] = -9999, np.nan
    tags = [(42112, 2, 0, GDAL, True), (42113, 2, 0, "-9999", True)]
    path = write(image, photometric="minisblack", planarconfig="contig", extratags=tags, metadata=None)
    found = read(path)
    np.testing.assert_array_equal(found, np.where(image == -9999, np.nan, image))
    assert look(path).band_names == ("B02", "B8A")
    assert look(path).nodata == -9999
    with open_image(path, bands=(1,)) as opened:
        assert opened.band_names == ("B8A",)
        np.testing.assert_array_equal(opened.read(0, 0, 10, 10), found[:10, :10, 1:])
    for text in ("nan", "-1.79769e+308", "none"):  # which no pixel has
        tags = [(42113, 2, 0, text, True)]
        path = write(image, photometric="minisblack", planarconfig="contig", extratags=tags, metadata=None)
        np.testing.assert_array_equal(read(path), image)
    # Integers stay as they are, also if it is a value that they cannot have.
    for text in ("-9999", "1e30"):
        small = values("u1", HEIGHT, WIDTH)
        tags = [(42113, 2, 0, text, True)]
        for options in ({}, {"tile": (16, 16), "compression": "zlib"}):
            path = write(small, photometric="minisblack", extratags=tags, metadata=None, **options)
            np.testing.assert_array_equal(read(path)[..., 0], small)
    integers = values("u2", HEIGHT, WIDTH)
    path = write(integers, photometric="minisblack", extratags=[(42113, 2, 0, "0", True)], metadata=None)
    np.testing.assert_array_equal(read(path)[..., 0], integers)
    assert look(path).nodata == 0


def test_names_of_channels_in_ome(write):
    path = write(
        STACK[:3],
        ome=True,
        photometric="minisblack",
        metadata={"axes": "CYX", "Channel": {"Name": ["DAPI", "GFP", "RFP"]}},
    )
    assert look(path).band_names == ("DAPI", "GFP", "RFP")


@pytest.mark.parametrize("dtype, fits", [("u4", "u2"), ("i4", "i2"), ("u8", "u2"), ("i8", "i2")])
def test_wide_integers_that_fit_16_bits(write, dtype, fits):
    image = values(fits, HEIGHT, WIDTH).astype(dtype)
    found = read(write(image, photometric="minisblack"))
    assert found.dtype == fits
    np.testing.assert_array_equal(found[..., 0], image)
    with open_image(write(image, photometric="minisblack")) as opened:
        assert opened.dtype == np.float32  # of all windows of an image, whatever values they hold
        np.testing.assert_array_equal(opened.read(0, 0, 9, 9)[..., 0], image[:9, :9])
    image[0, 0] = 2**24 + 1
    with pytest.raises(
        UndecodableImage, match=r"values reach from .* to 16,777,217; float32 .* save it as uint16, int16"
    ):
        read(write(image, photometric="minisblack"))


@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("compression", ["jpeg2000", "png", "webp"])
def test_compressions_of_images(write, compression, tile):
    dtype = "u1" if compression == "webp" else "u2"
    image = values(dtype, HEIGHT, WIDTH, 3)
    path = write(
        image,
        photometric="rgb",
        compression=compression,
        tile=tile,
        compressionargs={"level": 0} if compression != "webp" else {"lossless": True},
    )
    np.testing.assert_array_equal(read(path), image)
    with open_image(path) as opened:
        np.testing.assert_array_equal(opened.read(11, 13, 17, 19), image[11:28, 13:32])


@pytest.mark.parametrize("options", [{"photometric": "ycbcr", "subsampling": (2, 2)}, {"photometric": "rgb"}])
def test_jpeg_is_decoded_as_pillow_decodes_it(write, options):
    smooth = np.add.outer(np.arange(64), np.arange(80)).astype(np.uint8)
    image = np.stack([smooth, smooth[::-1], smooth[:, ::-1]], axis=-1)
    path = write(image, compression="jpeg", tile=(32, 32), **options)
    with Image.open(path) as picture:
        np.testing.assert_allclose(read(path).astype(int), np.asarray(picture.convert("RGB")), atol=1)


@pytest.mark.parametrize(
    "image, options, reason",
    [
        (values("u1", 16, 16, 3), {"photometric": "cielab"}, "colors are CIELAB; save it as RGB"),
        (values("u1", 16, 16, 3), {"photometric": "ycbcr"}, "colors are YCBCR; save it as RGB"),
        (values("f4", 16, 16), {"photometric": "miniswhite"}, "0 is white; save it with 0 as black"),
        (values("f4", 16, 16).astype(complex), {}, "its values are complex128; save them as integers or floats"),
        (values("u1", 16, 16), {"compression": "lerc"}, "the compression LERC; save it with Deflate"),
    ],
)
def test_what_is_not_read_is_refused_with_the_remedy(write, image, options, reason):
    with pytest.raises(UndecodableImage, match=reason):
        read(write(image, **options))


def test_a_stream_larger_than_its_tile_is_refused(write, tmp_path):
    """Before it is decoded: the size in a JPEG's header decides how much memory its decoder takes."""
    path = write(values("u1", 16, 16), compression="jpeg", photometric="minisblack")
    data = bytearray(path.read_bytes())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    with pytest.raises(UndecodableImage, match="a stream of 65535 x 65535 pixels in a tile of 16 x 16"):
        read(path)


def test_windows_decode_the_tiles_that_they_need(write, monkeypatch):
    image = values("u2", 256, 320, 3)
    path = write(image, photometric="rgb", tile=(32, 32), compression="zlib")
    decoded = []
    check = tifffile.TiffPage.decode.func

    def counting(page):
        decode = check(page)
        return lambda data, index, **options: decoded.append(index) or decode(data, index, **options)

    monkeypatch.setattr(tifffile.TiffPage, "decode", property(counting))
    with open_image(path) as opened:
        assert opened.windowed
        np.testing.assert_array_equal(opened.read(40, 70, 30, 50), image[40:70, 70:120])
    assert decoded == [12, 13, 22, 23]  # of ten tiles across, rows 1 and 2, columns 2 and 3


def test_whether_windows_are_read_is_said(write):
    image = values("u2", 64, 64)
    assert open_image(write(image)).windowed
    assert open_image(write(image, compression="zlib", rowsperstrip=8)).windowed
    whole = open_image(write(image, compression="zlib", rowsperstrip=64))
    assert not whole.windowed
    np.testing.assert_array_equal(whole.read(10, 20, 30, 40)[..., 0], image[10:40, 20:60])
    with pytest.raises(ValueError, match="a window of 60 x 4 pixels at row 10, column 0 is not within"):
        whole.read(10, 0, 60, 4)


def test_a_large_image_is_read_by_windows_only(tmp_path):
    path = tmp_path / "large.tif"
    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        tiles = itertools.repeat(zlib.compress(bytes(range(256)) * 256 * 3), 79 * 79)
        tif.write(
            tiles, shape=(20_000, 20_000, 3), dtype=np.uint8, tile=(256, 256), photometric="rgb", compression="zlib"
        )
    with pytest.raises(UndecodableImage, match="20000 x 20000 pixels, 3 x 1 bytes each; no more than"):
        read(path)
    with open_image(path) as opened:
        expected = np.arange(256 * 256 * 3, dtype=np.uint8).reshape(256, 256, 3)[3:203, 5:205]
        np.testing.assert_array_equal(opened.read(70 * 256 + 3, 60 * 256 + 5, 200, 200), expected)


def test_a_slide_is_its_largest_level(tmp_path):
    """As Aperio's scanners write it: beside the levels there are a thumbnail, a label and an overview."""
    image = values("u1", 128, 96, 3)
    path = tmp_path / "one.svs"
    with tifffile.TiffWriter(path) as tif:
        options = dict(photometric="rgb", metadata=None, description="Aperio Image Library v1\n96x128")
        tif.write(image, tile=(32, 32), compression="zlib", **options)
        tif.write(image[::8, ::8], **options)
        tif.write(image[::4, ::4], tile=(32, 32), compression="zlib", **options)
        for side in (40, 50):
            tif.write(image[:side, :side], subfiletype=1, **options)
    assert look(path).count == 1
    np.testing.assert_array_equal(read(path), image)


def test_threads_share_an_open_image(write):
    image = values("u2", 256, 256, 3)
    places = [(int(top), int(left)) for top, left in RNG.integers(0, 200, (200, 2))]
    path = write(image, photometric="rgb", tile=(16, 16), compression="zlib")
    with open_image(path) as opened, ThreadPoolExecutor(8) as pool:
        windows = list(pool.map(lambda place: opened.read(*place, 50, 40), places))
    for (top, left), window in zip(places, windows, strict=True):
        np.testing.assert_array_equal(window, image[top : top + 50, left : left + 40])


def test_bytes_are_read_as_files_are():
    from ssl_jax.data.formats import decode_image

    image, file = values("u2", HEIGHT, WIDTH, 5), io.BytesIO()
    tifffile.imwrite(file, image, photometric="minisblack", planarconfig="contig", compression="zlib")
    np.testing.assert_array_equal(decode_image(file.getvalue(), None, "one"), image)

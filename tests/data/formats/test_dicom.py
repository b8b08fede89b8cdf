"""DICOM files that pydicom wrote, and its own examples, against pydicom's reading of them."""

from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import apply_color_lut

from ssl_jax.data.formats import UndecodableImage, look, open_image, read_image

RNG = np.random.default_rng(0)
ROWS, COLUMNS = 20, 30


def read(path, channels=None, **options):
    return read_image(Path(path), "one", channels, **options)


def dataset(values: np.ndarray, *, bits: int = 0, syntax: str = uid.ExplicitVRLittleEndian, **elements) -> Dataset:
    """Of values [rows, columns], [rows, columns, 3], or with frames before them and NumberOfFrames in `elements`."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = syntax
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = uid.SecondaryCaptureImageStorage
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = uid.generate_uid()
    color = values.shape[-1] == 3
    made.Rows, made.Columns = values.shape[-3:-1] if color else values.shape[-2:]
    made.SamplesPerPixel = 3 if color else 1
    if color:
        made.PlanarConfiguration = 0
    made.PhotometricInterpretation = "RGB" if color else "MONOCHROME2"
    made.BitsAllocated = 8 * values.itemsize
    made.BitsStored = bits or 8 * values.itemsize
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(values.dtype.kind == "i")
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    made.PixelData = data + b"\0" * (len(data) % 2)
    made["PixelData"].VR = "OW" if values.itemsize > 1 else "OB"
    for name, value in elements.items():
        setattr(made, name, value)
    return made


@pytest.fixture
def write(tmp_path):
    def write(made: Dataset) -> Path:
        made.save_as(tmp_path / "one.dcm", enforce_file_format=True)
        return tmp_path / "one.dcm"

    return write


def values(dtype: str, *shape: int, bits: int = 0) -> np.ndarray:
    kind = np.dtype(dtype)
    bits = bits or 8 * kind.itemsize
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if kind.kind == "i" else (0, 2**bits - 1)
    return RNG.integers(low, high, shape, kind, endpoint=True)


@pytest.mark.parametrize(
    "dtype, bits, as_read",
    [("u1", 8, "u1"), ("u2", 12, "u2"), ("u2", 16, "u2"), ("i2", 16, "i2"), ("i1", 8, "i2"), ("i2", 12, "i2")],
)
def test_stored_values(write, dtype, bits, as_read):
    stored = values(dtype, ROWS, COLUMNS, bits=bits)
    found = read(write(dataset(stored, bits=bits)))
    assert found.dtype == as_read
    np.testing.assert_array_equal(found[..., 0], stored)


def test_color(write):
    stored = values("u1", ROWS, COLUMNS, 3)
    np.testing.assert_array_equal(read(write(dataset(stored))), stored)
    np.testing.assert_array_equal(read(write(dataset(stored)), 3, bands=(2, 1, 0)), stored[..., ::-1])
    planes = dataset(np.ascontiguousarray(stored))
    planes.PlanarConfiguration, planes.PixelData = 1, stored.transpose(2, 0, 1).tobytes()
    np.testing.assert_array_equal(read(write(planes)), stored)


def test_units_of_the_modality(write):
    """Hounsfield units are integers, and read so; another slope gives floats."""
    stored = values("u2", ROWS, COLUMNS, bits=12)
    ct = read(write(dataset(stored, bits=12, RescaleSlope=1, RescaleIntercept=-1024)))
    assert ct.dtype == np.int16
    np.testing.assert_array_equal(ct[..., 0], stored.astype(int) - 1024)
    pet = read(write(dataset(stored, bits=12, RescaleSlope="0.125", RescaleIntercept="3.5")))
    assert pet.dtype == np.float32
    np.testing.assert_array_equal(pet[..., 0], stored.astype(np.float64) * 0.125 + 3.5)
    far = read(write(dataset(stored, bits=12, RescaleSlope=100, RescaleIntercept=0)))
    assert far.dtype == np.float32
    np.testing.assert_array_equal(far[..., 0], stored.astype(int) * 100)


def test_larger_is_brighter(write):
    stored = values("u2", ROWS, COLUMNS, bits=12)
    inverted = dict(bits=12, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read(write(dataset(stored, **inverted)))[..., 0], 4095 - stored)
    scaled = read(write(dataset(stored, **inverted, RescaleSlope=2, RescaleIntercept=-10)))
    np.testing.assert_array_equal(scaled[..., 0], 2 * (4095 - stored.astype(int)) - 10)
    signed = values("i2", ROWS, COLUMNS)
    found = read(write(dataset(signed, PhotometricInterpretation="MONOCHROME1")))
    np.testing.assert_array_equal(found[..., 0], -1 - signed)


def test_table_of_the_modality(write):
    table = Dataset()
    table.LUTDescriptor, table.LUTData, table.ModalityLUTType = [4, 0, 16], [7, 100, 9, 60000], "US"
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    stored = RNG.integers(0, 4, (ROWS, COLUMNS), np.uint8)
    looked_up = np.array([7, 100, 9, 60000])[stored]
    for colors, expected in (("MONOCHROME2", looked_up), ("MONOCHROME1", 65535 - looked_up)):
        found = read(write(dataset(stored, ModalityLUTSequence=[table], PhotometricInterpretation=colors)))
        assert found.dtype == np.uint16
        np.testing.assert_array_equal(found[..., 0], expected)


def test_windows_for_screens_are_not_applied(write):
    stored = values("u2", ROWS, COLUMNS, bits=12)
    found = read(write(dataset(stored, bits=12, WindowCenter=100, WindowWidth=50)))
    np.testing.assert_array_equal(found[..., 0], stored)


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.RLELossless])
def test_frames_are_images(write, syntax):
    stored = values("u2", 5, ROWS, COLUMNS)
    made = dataset(stored, NumberOfFrames=5)
    if syntax == uid.RLELossless:
        made.compress(syntax)
    else:
        made.file_meta.TransferSyntaxUID = syntax
    path = write(made)
    assert look(path).count == 5
    for k in (0, 4, 2):
        np.testing.assert_array_equal(read(path, index=k)[..., 0], stored[k])
    with open_image(path, index=3) as opened:
        assert not opened.windowed
        np.testing.assert_array_equal(opened.read(2, 3, 10, 11)[..., 0], stored[3, 2:12, 3:14])


def test_each_frame_may_have_its_own_units(write):
    stored = values("u2", 2, ROWS, COLUMNS, bits=12)

    def group(slope):
        inner, outer = Dataset(), Dataset()
        inner.RescaleSlope, inner.RescaleIntercept, inner.RescaleType = slope, 0, "US"
        outer.PixelValueTransformationSequence = [inner]
        return outer

    made = dataset(stored, bits=12, NumberOfFrames=2, PerFrameFunctionalGroupsSequence=[group(2), group(3)])
    path = write(made)
    for k in range(2):
        np.testing.assert_array_equal(read(path, index=k)[..., 0], stored[k].astype(int) * (2 + k))
    shared = dataset(stored, bits=12, NumberOfFrames=2, SharedFunctionalGroupsSequence=[group(5)])
    np.testing.assert_array_equal(read(write(shared), index=1)[..., 0], stored[1].astype(int) * 5)


@pytest.mark.parametrize("dtype, name", [(np.float32, "FloatPixelData"), (np.float64, "DoubleFloatPixelData")])
def test_floats(write, dtype, name):
    stored = RNG.normal(size=(ROWS, COLUMNS)).astype(dtype)
    made = dataset(np.zeros((ROWS, COLUMNS), np.uint16), BitsAllocated=8 * stored.itemsize)
    for other in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(made, other)
    setattr(made, name, stored.tobytes())
    found = read(write(made))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[..., 0], stored.astype(np.float32))


ENCODE = {
    uid.JPEGLosslessSV1: lambda v, bits: imagecodecs.jpeg8_encode(v, lossless=True, predictor=1, bitspersample=bits),
    uid.JPEGLossless: lambda v, bits: imagecodecs.jpeg8_encode(v, lossless=True, predictor=6, bitspersample=bits),
    uid.JPEGLSLossless: lambda v, bits: imagecodecs.jpegls_encode(v),
    uid.JPEG2000Lossless: lambda v, bits: imagecodecs.jpeg2k_encode(
        v, level=0, reversible=True, codecformat="J2K", bitspersample=bits
    ),
    uid.HTJ2KLossless: lambda v, bits: imagecodecs.htj2k_encode(v, reversible=True),
}


@pytest.mark.parametrize("syntax", ENCODE, ids=lambda syntax: uid.UID(syntax).name)
@pytest.mark.parametrize("dtype, bits", [("u1", 8), ("u2", 12), ("u2", 16)])
def test_lossless_compression(write, syntax, dtype, bits):
    stored = values(dtype, 2, ROWS, COLUMNS, bits=bits)
    if syntax in (uid.JPEGLSLossless, uid.HTJ2KLossless) and bits == 12:
        bits = 16  # these encoders write the type's bits
    made = dataset(stored, bits=bits, NumberOfFrames=2)
    made.file_meta.TransferSyntaxUID = syntax
    made.PixelData = encapsulate([ENCODE[syntax](frame, bits) for frame in stored])
    made["PixelData"].is_undefined_length = True
    path = write(made)
    for k in range(2):
        np.testing.assert_array_equal(read(path, index=k)[..., 0], stored[k])


PLUGINS = {
    **dict.fromkeys([uid.JPEG2000, uid.JPEG2000Lossless, uid.JPEGBaseline8Bit], "pillow"),
    uid.RLELossless: "pydicom",
}
EXAMPLES = [
    *("CT_small.dcm", "MR_small.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm", "MR_small_expb.dcm"),
    *("JPEG2000.dcm", "MR_small_jp2klossless.dcm", "J2K_pixelrep_mismatch.dcm", "693_J2KI.dcm"),
    *("SC_rgb_rle_16bit_2frame.dcm", "SC_rgb_small_odd.dcm", "SC_ybr_full_422_uncompressed.dcm", "rtdose_rle.dcm"),
    *("liver_1frame.dcm", "examples_ybr_color.dcm", "SC_rgb_dcmtk_+eb+cr.dcm"),
    *("SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_jpeg_gdcm.dcm", "SC_rgb_dcmtk_+eb+cy+np.dcm", "SC_jpeg_no_color_transform.dcm"),
    *("SC_rgb_dcmtk_+eb+cy+s4.dcm", "SC_rgb_small_odd_jpeg.dcm", "SC_rgb_jpeg_app14_dcmd.dcm"),
]


@pytest.mark.parametrize("name", EXAMPLES)
def test_pydicoms_examples(name):
    """Against pydicom with its other plugins: values as stored, times slope plus intercept."""
    path = get_testdata_file(name, download=False)
    header = pydicom.dcmread(path)
    frames = int(header.get("NumberOfFrames", 1))
    assert look(Path(path)).count == frames
    plugin = PLUGINS.get(header.file_meta.TransferSyntaxUID, "")
    for k in range(frames):
        expected = pydicom.pixels.pixel_array(path, index=k, decoding_plugin=plugin)
        expected = expected * float(header.get("RescaleSlope", 1)) + float(header.get("RescaleIntercept", 0))
        expected = expected if expected.ndim == 3 else expected[..., None]
        np.testing.assert_array_equal(read(path, index=k), expected.astype(np.float32))


def test_a_palette_becomes_its_colors():
    path = get_testdata_file("examples_palette.dcm", download=False)
    header = pydicom.dcmread(path)
    np.testing.assert_array_equal(read(path), apply_color_lut(header.pixel_array, header))


@pytest.mark.parametrize("name", ["JPEGLSNearLossless_08.dcm", "JPEGLSNearLossless_16.dcm", "JPGExtended.dcm"])
def test_what_no_plugin_of_pydicom_decodes_here(name):
    path = get_testdata_file(name, download=False)
    assert read(path).shape[:2] == (pydicom.dcmread(path).Rows, pydicom.dcmread(path).Columns)


@pytest.mark.parametrize(
    "name, reason",
    [
        ("test-SR.dcm", "a DICOM file without an image"),
        ("rtplan.dcm", "a DICOM file without an image"),
        ("image_dfl.dcm", "compressed as Deflated Explicit VR Little Endian; save it uncompressed"),
        ("MR_truncated.dcm", "damaged"),
        ("no_meta.dcm", "damaged"),
    ],
)
def test_what_is_not_read_is_named(name, reason):
    with pytest.raises(UndecodableImage, match=reason):
        read(get_testdata_file(name, download=False))


@pytest.mark.parametrize("syntax", [uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEG2000Lossless])
def test_a_stream_of_another_size_is_refused(write, syntax):
    """Before it is decoded: its own header decides how much memory its decoder takes."""
    stored = values("u1", ROWS, COLUMNS)
    made = dataset(stored)
    made.file_meta.TransferSyntaxUID = syntax
    made.PixelData = encapsulate([ENCODE[syntax](values("u1", 2 * ROWS, COLUMNS), 8)])
    made["PixelData"].is_undefined_length = True
    with pytest.raises(UndecodableImage, match="its stream has 30 x 40 pixels of 1 samples, its header says 30 x 20"):
        read(write(made))


def test_more_pixels_than_are_read(write):
    made = dataset(values("u1", ROWS, COLUMNS))
    made.Rows = made.Columns = 60_000
    with pytest.raises(UndecodableImage, match="60000 x 60000 pixels, 1 x 1 bytes each; no more than"):
        read(write(made))
    made.NumberOfFrames = 2**30
    with pytest.raises(UndecodableImage, match="1,073,741,824 images in one file; no more than"):
        read(write(made))

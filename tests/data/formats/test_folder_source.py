"""Folders of files of all formats: which are read, what the rest is, images of one file, windows."""

import nibabel as nib
import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image
from pydicom.data import get_testdata_file

from ssl_jax import data
from ssl_jax.data import folder_source
from ssl_jax.data.formats import UndecodableImage, table

RNG = np.random.default_rng(0)
BANDS = RNG.integers(0, 60000, (24, 20, 13), np.uint16)
VOLUME = RNG.integers(0, 100, (8, 9, 5)).astype(np.int16)
UPRIGHT = np.diag([-1, -1, 1, 1])


@pytest.fixture
def root(tmp_path):
    """A folder with a file of each kind."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    Image.fromarray(BANDS[..., 0].astype(np.uint8)).save(tmp_path / "a" / "gray.png")
    tifffile.imwrite(tmp_path / "a" / "bands.tif", BANDS, planarconfig="contig", photometric="minisblack")
    nib.save(nib.Nifti1Image(VOLUME, UPRIGHT), tmp_path / "b" / "scan.nii.gz")
    pydicom.dcmread(get_testdata_file("CT_small.dcm", download=False)).save_as(tmp_path / "b" / "IM0001")
    np.save(tmp_path / "b" / "array.npy", BANDS[..., :3])
    for name in ("b/notes.txt", "a/table.csv", "a/other.txt", "b/README"):
        (tmp_path / name).write_text("no image")
    return tmp_path


def test_images_of_all_files_in_order(root, caplog):
    source = data.folder(root, channels=None)
    names = [source.image_name(k) for k in range(len(source))]
    assert names == [
        *("a/bands.tif", "a/gray.png", "b/IM0001", "b/array.npy"),
        *(f"b/scan.nii.gz#{k}" for k in range(5)),
    ]
    assert source.labels.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1]
    assert source.groups.tolist() == [0, 1, 2, 3, 4, 4, 4, 4, 4]
    np.testing.assert_array_equal(source.read(0)[0], BANDS)
    np.testing.assert_array_equal(source.read(3)[0], BANDS[..., :3])
    for k in (4, 0, 2):
        image, label = source.read(4 + k)
        np.testing.assert_array_equal(image[..., 0], VOLUME[:, :, k].T)
        assert label == 1
    assert "not read in" in caplog.text
    assert "2 .txt, 1 .csv, 1 without an ending" in caplog.text


def test_photos_are_converted_and_bands_are_not(root):
    source = data.folder(root, channels=3)
    np.testing.assert_array_equal(source.read(1)[0], np.repeat(BANDS[..., :1].astype(np.uint8), 3, axis=2))
    with pytest.raises(UndecodableImage, match=r"13 bands, .*data.channels=13, or data.bands=\(0, 1, 2"):
        source.read(0)[0]
    picked = data.folder(root, channels=3, bands=(12, 3, 4))
    np.testing.assert_array_equal(picked.read(0)[0], BANDS[..., [12, 3, 4]])
    with pytest.raises(UndecodableImage, match=r"has 1 bands.*asks for band 12"):
        picked.read(1)[0]
    luma = data.folder(root, channels=1).read(3)[0]
    assert luma.dtype == np.uint16
    np.testing.assert_allclose(luma[..., 0], BANDS[..., :3] @ [0.299, 0.587, 0.114], atol=0.51)


def test_luma_of_every_type(tmp_path):
    for dtype in (np.uint8, np.int16, np.float32):
        image = RNG.integers(-90 if dtype != np.uint8 else 0, 120, (20, 20, 3)).astype(dtype)
        np.save(tmp_path / "one.npy", image)
        gray = data.folder(tmp_path, channels=1).read(0)[0]
        assert gray.dtype == dtype
        np.testing.assert_allclose(
            gray[..., 0], image @ [0.299, 0.587, 0.114], atol=1e-4 if dtype == np.float32 else 0.6
        )
        np.save(tmp_path / "one.npy", image[..., 0])
        np.testing.assert_array_equal(
            data.folder(tmp_path, channels=3).read(0)[0], np.repeat(image[..., :1], 3, axis=2)
        )


def test_what_needs_a_package_is_counted_with_it(root, caplog, monkeypatch):
    monkeypatch.setattr(table, "_installed", lambda package: package != "pydicom")
    (root / "b" / "two.dcm").touch()
    source = data.folder(root, channels=None)
    assert len(source) == 8
    need = "(reading DICOM needs pydicom: pip install 'ssl_jax[dicom]')"
    assert f"1 .dcm {need}" in caplog.text
    assert f"1 without an ending {need}" in caplog.text  # IM0001, told by its first bytes


def test_a_folder_of_nothing_else_fails_with_that_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "_installed", lambda package: False)
    for k in range(1200):
        (tmp_path / f"{k}.dcm").touch()
    (tmp_path / "one.heic").touch()
    with pytest.raises(
        ValueError,
        match=r"no images in .*, only 1,200 .dcm \(reading DICOM needs pydicom: pip install 'ssl_jax\[dicom\]'\), "
        r"1 .heic \(reading HEIC needs pillow-heif: pip install 'ssl_jax\[heif\]'\)",
    ):
        data.folder(tmp_path)


def test_images_of_one_file_stay_on_one_side(tmp_path):
    for k in range(10):
        nib.save(nib.Nifti1Image(VOLUME + 100 * k, UPRIGHT), tmp_path / f"{k}.nii")
    train, test = folder_source.folder_pair(tmp_path, train_split="train", test_split="test", channels=None)
    assert (len(train), len(test)) == (40, 10)
    scans = [{int(source.read(k)[0].min()) // 100 for k in range(len(source))} for source in (train, test)]
    assert scans[0].isdisjoint(scans[1])
    train, test = data.split(data.folder(tmp_path, channels=None), test_share=0.3)
    assert (len(train), len(test)) == (35, 15)


def test_damaged_files_are_named_when_they_are_read(root):
    (root / "a" / "broken.tif").write_bytes((root / "a" / "bands.tif").read_bytes()[:100])
    (root / "a" / "empty.nii").touch()
    source = data.folder(root, channels=None)
    names = [source.image_name(k) for k in range(len(source))]
    for name in ("a/broken.tif", "a/empty.nii"):
        with pytest.raises(UndecodableImage) as error:
            source.read(names.index(name))[0]
        assert error.value.name == name
    np.testing.assert_array_equal(source.read(names.index("b/scan.nii.gz#3"))[0][..., 0], VOLUME[:, :, 3].T)


def test_pages_have_to_be_told(tmp_path):
    tifffile.imwrite(tmp_path / "one.tif", BANDS.transpose(2, 0, 1), photometric="minisblack")
    with pytest.raises(UndecodableImage, match=r"data.pages=bands"):
        data.folder(tmp_path, channels=None).read(0)[0]
    np.testing.assert_array_equal(data.folder(tmp_path, channels=13, pages="bands").read(0)[0], BANDS)
    images = data.folder(tmp_path, channels=1, pages="images")
    assert len(images) == 13
    np.testing.assert_array_equal(images.read(7)[0], BANDS[..., 7:8])
    with pytest.raises(ValueError, match=r"pages must be 'bands', 'images', or ''.*, got 'slices'"):
        data.folder(tmp_path, pages="slices")


def test_windows_facts_and_digest(tmp_path):
    image = BANDS[..., :2].astype(np.float32)
    gdal = "<GDALMetadata>" + "".join(
        f'<Item name="DESCRIPTION" sample="{k}" role="description">{name}</Item>'
        for k, name in enumerate(("red", "nir"))
    )
    tags = [(42112, 2, 0, gdal + "</GDALMetadata>", True), (42113, 2, 0, "-1", True)]
    options = dict(planarconfig="contig", photometric="minisblack", extratags=tags, metadata=None, tile=(16, 16))
    tifffile.imwrite(tmp_path / "one.tif", image, **options)
    source = data.folder(tmp_path, channels=None)
    assert (source.band_names, source.nodata) == (("red", "nir"), (-1.0,))
    assert data.folder(tmp_path, channels=None, bands=(1,)).band_names == ("nir",)
    with data.folder(tmp_path, channels=None, bands=(1,)).open(0) as opened:
        assert opened.windowed
        np.testing.assert_array_equal(opened.read(3, 2, 9, 10), image[3:12, 2:12, 1:])
    before = source.digest()
    assert data.folder(tmp_path, channels=3, bands=(0,)).digest() == before
    nib.save(nib.Nifti1Image(VOLUME, UPRIGHT), tmp_path / "scan.nii")
    assert data.folder(tmp_path, channels=None).digest() != before

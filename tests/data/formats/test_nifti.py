"""NIfTI volumes that nibabel wrote, against nibabel's reading and turning of them."""

import gzip

import nibabel as nib
import numpy as np
import pytest

from ssl_jax.data.formats import UndecodableImage, look, open_image, read_image

RNG = np.random.default_rng(0)
SHAPE = (7, 9, 5)


@pytest.fixture
def write(tmp_path):
    def write(volume, affine=None, kind=nib.Nifti1Image, name="one.nii", **header):
        image = kind(volume, np.diag([-1, -1, 1, 1]) if affine is None else affine)
        for key, value in header.items():
            image.header[key] = value
        nib.save(image, tmp_path / name)
        return tmp_path / name

    return write


def read(path, channels=None, **options):
    return read_image(path, "one", channels, **options)


def values(dtype, *shape):
    kind = np.dtype(dtype)
    return RNG.normal(size=shape).astype(kind) if kind.kind == "f" else RNG.integers(0, 100, shape, kind)


@pytest.mark.parametrize("name", ["one.nii", "one.nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize(
    "dtype, as_read", [("u1", "u1"), ("i2", "i2"), ("u2", "u2"), ("f4", "f4"), ("i4", "i2"), ("f8", "f4")]
)
def test_slices_are_images(write, name, kind, dtype, as_read):
    volume = values(dtype, *SHAPE)
    path = write(volume, kind=kind, name=name)
    assert look(path).count == 5
    for k in (0, 4, 2):
        found = read(path, index=k)
        assert found.dtype == as_read
        np.testing.assert_array_equal(found[..., 0], volume[:, :, k].T.astype(as_read))


AXES = ["RAS", "LPS", "LAS", "RPI", "PSR", "ASL", "SAR", "IPL", "PIL", "SRA"]


@pytest.mark.parametrize("name", ["one.nii", "one.nii.gz"])
@pytest.mark.parametrize("axes", AXES)
def test_a_volume_is_turned_as_its_affine_says(write, name, axes):
    """However it lies in the file, slices are axial: rows from front to back, columns from right to left."""
    volume = values("i2", *SHAPE)
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axes))
    path = write(volume, nib.orientations.inv_ornt_aff(turn, SHAPE), name=name)
    assert "".join(nib.aff2axcodes(nib.load(path).affine)) == axes
    turned = nib.load(path).as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(nib.load(path).affine), nib.orientations.axcodes2ornt("LPS"))
    )
    expected = np.asarray(turned.dataobj)
    assert look(path).count == expected.shape[2]
    for k in range(expected.shape[2]):
        np.testing.assert_array_equal(read(path, index=k)[..., 0], expected[:, :, k].T)


def test_series_of_volumes(write):
    for name in ("one.nii", "one.nii.gz"):
        volumes = values("i2", *SHAPE, 4)
        path = write(volumes, name=name)
        assert look(path).count == 20
        for k in (19, 0, 7, 8):
            np.testing.assert_array_equal(read(path, index=k)[..., 0], volumes[:, :, k % 5, k // 5].T)


@pytest.mark.parametrize(
    "slope, intercept, dtype", [(1, -1024, "i2"), (2, 3, "i2"), (0.5, 0, "f4"), (100, 0, "f4"), (0.25, -7, "f4")]
)
@pytest.mark.parametrize("name", ["one.nii", "one.nii.gz"])
def test_scaled_values(write, name, slope, intercept, dtype):
    stored = RNG.integers(-1000, 1000, SHAPE).astype(np.int16)
    path = write(stored, name="stored.nii")
    data = bytearray(path.read_bytes())
    data[112:120] = np.array([slope, intercept], "<f4").tobytes()  # scl_slope, scl_inter; nibabel would scale back
    packed = gzip.compress(data) if name.endswith(".gz") else bytes(data)
    (path.parent / name).write_bytes(packed)
    expected = np.asarray(nib.load(path.parent / name).dataobj)
    for k in range(SHAPE[2]):
        found = read(path.parent / name, index=k)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found[..., 0], expected[:, :, k].T.astype(dtype))


def test_colors(write):
    stored = values("u1", *SHAPE, 3)
    packed = stored.copy().view(np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))[..., 0]
    for name in ("one.nii", "one.nii.gz"):
        np.testing.assert_array_equal(read(write(packed, name=name), index=3), stored[:, :, 3].transpose(1, 0, 2))


def test_flat_images_and_windows(write):
    flat = values("u2", 40, 30)
    path = write(flat)
    assert look(path).count == 1
    np.testing.assert_array_equal(read(path)[..., 0], flat.T)
    with open_image(path) as opened:
        assert opened.windowed
        assert opened.shape == (30, 40, 1)
        np.testing.assert_array_equal(opened.read(3, 4, 20, 30)[..., 0], flat.T[3:23, 4:34])
    with open_image(write(flat, name="one.nii.gz")) as opened:
        assert not opened.windowed
        np.testing.assert_array_equal(opened.read(3, 4, 20, 30)[..., 0], flat.T[3:23, 4:34])


def test_slices_in_order_unpack_a_file_once(write, monkeypatch):
    volume = values("i2", 64, 64, 50)
    path = write(volume, name="one.nii.gz")
    rewinds = []
    rewind = gzip._GzipReader._rewind
    monkeypatch.setattr(gzip._GzipReader, "_rewind", lambda self: rewinds.append(1) or rewind(self))
    for k in range(50):
        np.testing.assert_array_equal(read(path, index=k)[..., 0], volume[:, :, k].T)
    assert len(rewinds) <= 1  # for the header


@pytest.mark.parametrize(
    "volume, reason",
    [
        (values("f4", *SHAPE).astype(np.complex64), "its values are complex64"),
        (values("f4", *SHAPE, 2, 3), "a volume, or a series of volumes, is read"),
    ],
)
def test_what_is_not_read_is_named(write, volume, reason):
    with pytest.raises(UndecodableImage, match=reason):
        read(write(volume), index=0)


def test_a_header_that_promises_more_than_the_file(write):
    path = write(values("u1", *SHAPE), name="one.nii")
    data = bytearray(path.read_bytes())
    data[42:48] = b"\xff\x7f" * 3  # sides of 32767
    path.write_bytes(data)
    with pytest.raises(UndecodableImage, match="a truncated NIfTI file"):
        read(path)
    path.with_suffix(".nii.gz").write_bytes(gzip.compress(data))
    with pytest.raises(UndecodableImage, match="a truncated NIfTI file"):
        read(path.with_suffix(".nii.gz"))

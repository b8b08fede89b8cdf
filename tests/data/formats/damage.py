"""Damaged files of every format that is not of photos: whole ones, and three ways to damage them."""

import functools
import gzip
import io
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import imagecodecs
import nibabel as nib
import numpy as np
import pillow_heif
import tifffile
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

SIDES = (48, 64)  # rows, columns
NUMBERS = [0, 1, 2, 3, 7, 16, 255, 256, 4096, 2**14, 2**15 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1]


def _tiffs(values: np.ndarray) -> Iterator[tuple[str, bytes]]:
    """`values`: uint8 [rows, columns, 5]."""
    layouts = {
        "plain": (values[..., :3], dict(photometric="rgb")),
        "tiled": (values, dict(tile=(16, 16), compression="zlib", planarconfig="contig", predictor=True)),
        "planar": (values.transpose(2, 0, 1), dict(planarconfig="separate", compression="lzw", rowsperstrip=7)),
        "wide": (values.astype(np.uint16)[..., 0] * 99, dict(compression="zstd", bigtiff=True, byteorder=">")),
        "float": (values[..., 0].astype(np.float32), dict(tile=(32, 16), compression="packbits")),
        "jpeg": (values[..., :3], dict(compression="jpeg", photometric="ycbcr", tile=(32, 32))),
        "jpeg 2000": (values[..., :3], dict(compression="jpeg2000", tile=(32, 32), photometric="rgb")),
        "webp": (values[..., :3], dict(compression="webp", photometric="rgb")),
        "png": (values[..., :3], dict(compression="png", photometric="rgb", rowsperstrip=16)),
        "lzma": (values[..., 0], dict(compression="lzma")),
        "palette": (
            values[..., 0],
            dict(photometric="palette", colormap=np.arange(768, dtype=np.uint16).reshape(3, 256)),
        ),
        "bits": (values[..., 0] > 99, dict(photometric="miniswhite")),
        "ome": (values.transpose(2, 0, 1), dict(ome=True, metadata={"axes": "ZYX"}, compression="zlib")),
        "imagej": (values.transpose(2, 0, 1), dict(imagej=True, metadata={"axes": "ZYX"})),
        "pages": (values.transpose(2, 0, 1), dict(metadata=None)),
    }
    for name, (image, options) in layouts.items():
        file = io.BytesIO()
        options.setdefault("photometric", "minisblack")
        tifffile.imwrite(file, image, **options)
        yield f"{name}.tif", file.getvalue()


def _dicom(frames: np.ndarray, syntax: str, encode: Callable | None = None, **elements) -> bytes:
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = syntax
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = uid.SecondaryCaptureImageStorage
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = "1.2.3"
    made.NumberOfFrames, made.Rows, made.Columns = frames.shape
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PixelRepresentation = 1, "MONOCHROME2", 0
    made.BitsAllocated = made.BitsStored = 8 * frames.itemsize
    made.HighBit = made.BitsStored - 1
    for name, value in elements.items():
        setattr(made, name, value)
    if syntax == uid.RLELossless:
        made.PixelData, made.file_meta.TransferSyntaxUID = frames.tobytes(), uid.ExplicitVRLittleEndian
        made["PixelData"].VR = "OW"
        made.compress(uid.RLELossless)
    else:
        made.PixelData = encapsulate([encode(frame) for frame in frames]) if encode else frames.tobytes()
        made["PixelData"].VR = "OB" if encode else "OW"
        made["PixelData"].is_undefined_length = encode is not None
    file = io.BytesIO()
    made.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _dicoms(values: np.ndarray) -> Iterator[tuple[str, bytes]]:
    frames = np.ascontiguousarray(values.transpose(2, 0, 1)[:2]).astype(np.uint16) * 99
    yield "native.dcm", _dicom(frames, uid.ExplicitVRLittleEndian, RescaleSlope=1, RescaleIntercept=-1024)
    yield "implicit.dcm", _dicom(frames, uid.ImplicitVRLittleEndian)
    yield "rle.dcm", _dicom(frames, uid.RLELossless)
    encoders = {
        uid.JPEGLosslessSV1: lambda v: imagecodecs.jpeg8_encode(v, lossless=True, predictor=1, bitspersample=16),
        uid.JPEGLSLossless: imagecodecs.jpegls_encode,
        uid.JPEG2000Lossless: lambda v: imagecodecs.jpeg2k_encode(v, level=0, reversible=True, codecformat="J2K"),
        uid.HTJ2KLossless: lambda v: imagecodecs.htj2k_encode(v, reversible=True),
    }
    for syntax, encode in encoders.items():
        yield f"{syntax}.dcm", _dicom(frames, syntax, encode)
    yield "jpeg.dcm", _dicom(frames.astype(np.uint8), uid.JPEGBaseline8Bit, imagecodecs.jpeg8_encode)


@functools.cache
def whole_files() -> dict[str, bytes]:
    """{name with its ending: contents}"""
    rng = np.random.default_rng(0)
    values = np.clip(np.add.outer(np.arange(48), np.arange(64))[..., None] + rng.integers(0, 40, 5), 0, 255)
    values = (values + rng.integers(0, 9, values.shape)).astype(np.uint8)
    files = dict(_tiffs(values)) | dict(_dicoms(values))
    volume = values.astype(np.int16)
    for kind, name in ((nib.Nifti1Image, "one.nii"), (nib.Nifti2Image, "two.nii"), (nib.Nifti1Image, "axes.nii")):
        affine = np.eye(4)[[1, 2, 0, 3]] if name == "axes.nii" else np.eye(4)
        files[name] = kind(volume, affine).to_bytes()
        files[f"{name}.gz"] = gzip.compress(files[name], mtime=0)
    files["one.jp2"] = bytes(imagecodecs.jpeg2k_encode(values[..., :4], level=0, codecformat="JP2"))
    files["one.j2k"] = bytes(imagecodecs.jpeg2k_encode(values.astype(np.uint16), level=0, codecformat="J2K"))
    files["one.avif"] = bytes(imagecodecs.avif_encode(values[..., :3], level=90))
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(values[..., :3])).save(file)
    files["one.heic"] = file.getvalue()
    file = io.BytesIO()
    np.save(file, values)
    files["one.npy"] = file.getvalue()
    return files


def truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def flipped(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, most often in the header."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 2, 4, 16, 64])):
        place = rng.randrange(min(len(data), rng.choice([40, 200, 1000, 10**9])))
        changed[place] = rng.choice([0, 1, 127, 255, rng.randrange(256)])
    return bytes(changed)


def absurd(data: bytes, rng: random.Random) -> bytes:
    """Numbers from 0 to all that fit, at even places or where the sides stand."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        layout = rng.choice(["<H", ">H", "<I", ">I"])
        size = struct.calcsize(layout)
        sides = [data.find(struct.pack(layout, side)) for side in SIDES]
        anywhere = 2 * rng.randrange(min(len(data) - size, rng.choice([100, 400, 1600, 10**9])) // 2)
        place = rng.choice([*(side for side in sides if side >= 0), anywhere, anywhere])
        number = rng.choice([number for number in NUMBERS if number < 256**size])
        changed[place : place + size] = struct.pack(layout, number)
    return bytes(changed)


def write_damaged(folder: Path, count: int, seed: int = 0) -> None:
    """`count` files, and beside them each whole one."""
    rng, files = random.Random(seed), whole_files()
    folder.mkdir()
    for name, data in files.items():
        (folder / f"whole_{name}").write_bytes(data)
    for number in range(count):
        name, data = rng.choice(list(files.items()))
        if name.endswith(".gz") and number % 2:  # what is packed is damaged, not the packing
            damaged = gzip.compress((truncated, flipped, absurd)[number % 3](gzip.decompress(data), rng), mtime=0)
        else:
            damaged = (truncated, flipped, absurd)[number % 3](data, rng)
        (folder / f"{number:05d}_{name}").write_bytes(damaged)

"""DICOM, by pydicom: its frames in the units of their modality (Hounsfield units for CT). Larger is brighter."""

# pyright: reportUnknownMemberType=false

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom import filereader, uid
from pydicom.pixels import utils
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

from ssl_jax.data.formats import dicom_frames
from ssl_jax.data.formats.errors import Unreadable
from ssl_jax.data.formats.stored import Opened, Stored, check_count, decoded_later, scaled

# The reader reports a file that cannot be decoded once, by name. pydicom would report each of its own doubts.
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
warnings.filterwarnings("ignore", module=r"pydicom\b")

GRAY = ("MONOCHROME1", "MONOCHROME2")
PALETTE = "PALETTE COLOR"
COLORS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
UNCOMPRESSED = {uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian}


def open_file(source: Path, pages: str = "") -> Opened:
    """The frames of a file. Overlays, and the windows that are meant for a screen, are not applied.

    Raises: Unreadable that names the remedy; whatever pydicom raises for damaged files.
    """
    syntax = uid.UID(filereader.read_file_meta_info(source).TransferSyntaxUID)
    if syntax not in UNCOMPRESSED | dicom_frames.SYNTAXES:  # one that is deflated, pydicom would inflate as a whole
        raise Unreadable(f"a DICOM file compressed as {syntax.name}; save it uncompressed, or as JPEG-LS or JPEG 2000")
    with source.open("rb") as file:
        header = pydicom.dcmread(file, stop_before_pixels=True)
    if "Rows" not in header or "Columns" not in header:
        raise Unreadable("a DICOM file without an image")
    count = int(header.get("NumberOfFrames") or 1)
    check_count(count)
    return Opened(count, lambda k: _frame(source, header, syntax, k))


def _frame(source: Path, header: Any, syntax: str, k: int) -> Stored:
    colors = str(header.get("PhotometricInterpretation", ""))
    if colors not in (*GRAY, PALETTE, *COLORS):
        raise Unreadable(f"a DICOM image whose colors are {colors!r}; save it as RGB or MONOCHROME2")
    samples = int(header.SamplesPerPixel)
    shape = (int(header.Rows), int(header.Columns), samples)

    def decode() -> np.ndarray:
        plugin = dicom_frames.NAME if syntax in dicom_frames.SYNTAXES else ""
        try:
            values = utils.pixel_array(source, index=k, decoding_plugin=plugin)
        except RuntimeError as error:  # pydicom quotes what the plugin raised
            raise Unreadable(f"its pixels are damaged: {str(error).split(plugin + ': ')[-1]}") from error
        values = values if values.ndim == 3 else values[..., None]
        if values.shape != shape:
            raise Unreadable(f"its pixels have the shape {list(values.shape)}, its header says {list(shape)}")
        return values if colors in COLORS else _meaning(values, header, colors, k)

    if colors in COLORS:
        return decoded_later(shape, _stored_dtype(header), decode)
    dtype = _meaning(np.zeros((1, 1, 1), _stored_dtype(header)), header, colors, k)
    return decoded_later((*shape[:2], dtype.shape[2]), dtype.dtype, decode)


def _stored_dtype(header: Any) -> np.dtype:
    bits = int(header.BitsAllocated)
    if "BitsStored" not in header:  # as of floats, which have no signed and unsigned
        return np.dtype(np.float32 if bits == 32 else np.float64)
    if bits not in (1, 8, 16, 32, 64):
        raise Unreadable(f"a DICOM image whose values have {bits} bits")
    return np.dtype(f"{'i' if header.get('PixelRepresentation') else 'u'}{max(bits // 8, 1)}")


def _meaning(values: np.ndarray, header: Any, colors: str, k: int) -> np.ndarray:
    """[height, width, 1] as stored -> in the modality's units, or a palette's colors."""
    if colors == PALETTE:
        return apply_color_lut(values[..., 0], header)
    table = header.get("ModalityLUTSequence")
    if table:
        values = apply_modality_lut(values, header)
        bits = int(table[0].LUTDescriptor[2])
        return 2**bits - 1 - values if colors == "MONOCHROME1" else values
    if colors == "MONOCHROME1":
        values = _inverted(values, header)
    slope, intercept = _rescale(header, k)
    return scaled(values, slope, intercept)


def _inverted(values: np.ndarray, header: Any) -> np.ndarray:
    """Least and greatest of what the stored bits can hold change places."""
    if np.issubdtype(values.dtype, np.floating):
        raise Unreadable("a DICOM image of floats as MONOCHROME1, whose greatest value is not known; save MONOCHROME2")
    if values.dtype.kind == "i":
        return np.invert(values)
    most = (1 << int(header.BitsStored)) - 1
    if int(values.max(initial=0)) > most:
        raise Unreadable(f"its values reach {int(values.max())}, but only {most} is said to be possible (BitsStored)")
    return values.dtype.type(most) - values


def _rescale(header: Any, k: int) -> tuple[float, float]:
    """(slope, intercept) of frame k."""
    found = header
    for groups, which in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", k)):
        if group := header.get(groups):
            found = (group[which].get("PixelValueTransformationSequence") or [found])[0]
    return float(found.get("RescaleSlope", 1)), float(found.get("RescaleIntercept", 0))

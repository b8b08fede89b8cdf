"""Compressed frames of DICOM files, decoded by imagecodecs through pydicom's interface for decoders.

imagecodecs is installed with the library and knows every compression, so values do not depend on which of pydicom's own
plugins are installed. The size in a frame's stream is compared with the file's before it is decoded.
"""

from typing import Any

import imagecodecs
from pydicom import uid
from pydicom.pixels.decoders.base import DecodeRunner, get_decoder

from ssl_jax.data.formats import jpeg2000
from ssl_jax.data.formats.errors import Unreadable
from ssl_jax.data.formats.header import check_jpeg_end, read_header

NAME = "ssl_jax"  # of the plugin
JPEG2000 = {uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K}
JPEG_LS = {uid.JPEGLSLossless, uid.JPEGLSNearLossless}
JPEG = {uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1}
AS_IN_THE_STREAM: Any = {"colorspace": "YCBCR", "outcolorspace": "YCBCR"}  # pydicom converts the colors
SYNTAXES = {*JPEG, *JPEG_LS, *JPEG2000, uid.RLELossless}


def is_available(syntax: str) -> bool:
    """pydicom asks for it."""
    return syntax in SYNTAXES


def decode_frame(data: bytes, runner: DecodeRunner) -> bytes:
    """A frame's values, samples of a pixel side by side; of RLE one sample after the other.

    Raises: Unreadable if its size is not the file's, and whatever imagecodecs raises for damaged data.
    """
    syntax = runner.transfer_syntax
    if syntax == uid.RLELossless:
        runner.set_option("planar_configuration", 1)
        size = runner.rows * runner.columns * runner.samples_per_pixel * (runner.bits_allocated // 8)
        return bytes(imagecodecs.dicomrle_decode(data, f"<u{runner.bits_allocated // 8}", out=size))
    header = jpeg2000.read_header(data) if syntax in JPEG2000 else read_header(data)
    if header[:3] != (runner.columns, runner.rows, runner.samples_per_pixel):
        raise Unreadable(
            f"its stream has {header.width} x {header.height} pixels of {header.bands} samples, its header says "
            f"{runner.columns} x {runner.rows} of {runner.samples_per_pixel}"
        )
    if syntax in JPEG2000:
        values = imagecodecs.jpeg2k_decode(data)
        if runner.photometric_interpretation in ("YBR_ICT", "YBR_RCT"):  # of the stream, which OpenJPEG undoes
            runner.set_option("photometric_interpretation", "RGB")
    elif syntax in JPEG_LS:
        values = imagecodecs.jpegls_decode(data)
    else:
        check_jpeg_end(data)
        colors: dict[str, Any] = {} if header.bands == 1 else AS_IN_THE_STREAM
        values = imagecodecs.jpeg8_decode(data, **colors)
    runner.set_option("planar_configuration", 0)
    runner.set_option("bits_allocated", 8 * values.dtype.itemsize)
    return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()


for _syntax in SYNTAXES:
    if NAME not in get_decoder(_syntax).available_plugins:
        get_decoder(_syntax).add_plugin(NAME, (__name__, "decode_frame"))

"""HEIC, by pillow-heif, with all bits of its values."""

# pyright: reportUnknownMemberType=false

from pathlib import Path

import numpy as np
import pillow_heif

from ssl_jax.data.formats.errors import Unreadable
from ssl_jax.data.formats.stored import ASSOCIATED, STRAIGHT, Opened, Stored, check_bytes, decoded_later


def open_file(source: Path, pages: str = "") -> Opened:
    """The first image of the file, turned as the file says. Raises: Unreadable; whatever pillow_heif raises."""
    check_bytes(source.stat().st_size)
    # Values of 10 and 12 bits stay as they are: neither cut to 8 bits nor moved up to 16.
    file = pillow_heif.open_heif(source, convert_hdr_to_8bit=False, hdr_to_16bit=False)
    return Opened(1, lambda _: _stored(file[0]))


def _stored(image: pillow_heif.HeifImage) -> Stored:
    colors, _, bits = image.mode.partition(";")
    bands = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "RGBa": 4, "La": 2}.get(colors)
    if bands is None:
        raise Unreadable(f"a HEIC image of mode {image.mode}; save it as PNG")
    alpha = {"A": STRAIGHT, "a": ASSOCIATED}.get(colors[-1], "")

    def decode() -> np.ndarray:
        values = np.asarray(image)
        return values if values.ndim == 3 else values[..., None]

    width, height = image.size
    dtype = np.dtype(np.uint16 if bits else np.uint8)
    return decoded_later((height, width, bands), dtype, decode, alpha=alpha)

"""AVIF, by imagecodecs, with all bits of its values; its size and its orientation by Pillow, which cuts to 8 bits."""

import io
from pathlib import Path

import imagecodecs
import numpy as np
from PIL import Image

from ssl_jax.data.formats.photos import EXIF_ORIENTATION
from ssl_jax.data.formats.stored import STRAIGHT, Opened, Stored, check_size, decoded, upright, whole_file


def open_file(source: Path | bytes, pages: str = "") -> Opened:
    """The first image of the file. Raises: Unreadable; whatever imagecodecs or Pillow raise."""
    data = whole_file(source)
    return Opened(1, lambda _: _stored(data))


def _stored(data: bytes) -> Stored:
    with Image.open(io.BytesIO(data), formats=["AVIF"]) as image:
        width, height = image.size
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    check_size((height, width, 4), 2)  # Pillow does not say how many bands and bits
    values = imagecodecs.avif_decode(data, index=0)
    values = values if values.ndim == 3 else values[..., None]
    if orientation in range(1, 9):
        values = upright(values, orientation)
    return decoded(np.asarray(values), alpha=STRAIGHT if values.shape[2] in (2, 4) else "")

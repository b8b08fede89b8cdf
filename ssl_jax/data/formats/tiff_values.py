"""What the values of a TIFF page mean: black and white, palettes, inks, alpha, missing values, names of bands."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import numpy as np

from ssl_jax.data.formats.errors import Unreadable
from ssl_jax.data.formats.stored import ASSOCIATED, STRAIGHT
from ssl_jax.data.formats.tiff_windows import JPEG, READ

MINISWHITE, MINISBLACK, RGB, PALETTE, MASK, SEPARATED, YCBCR, CFA, LINEAR = 0, 1, 2, 3, 4, 5, 6, 32803, 34892
COLORS = (MINISWHITE, MINISBLACK, RGB, PALETTE, MASK, SEPARATED, YCBCR, CFA, LINEAR)
CMYK = 1  # of the tag InkSet, and where it is missing
INK_SET, GDAL_METADATA, GDAL_NODATA = 332, 42112, 42113


def check_page(page: Any) -> None:
    """Raises: Unreadable for what is not read, with the remedy."""
    if page.dtype is None:
        raise Unreadable(f"a TIFF whose values have {page.bitspersample} bits and sample format {page.sampleformat}")
    if page.photometric not in COLORS or (page.photometric == YCBCR and page.compression not in JPEG):
        name = getattr(page.photometric, "name", page.photometric)
        raise Unreadable(f"a TIFF whose colors are {name}; save it as RGB")
    if page.compression not in READ:
        name = getattr(page.compression, "name", page.compression)
        raise Unreadable(f"a TIFF with the compression {name}; save it with Deflate, LZW, Zstandard or JPEG")
    if page.imagedepth != 1:
        raise Unreadable("a TIFF of volumes (ImageDepth); save its slices as pages")


class Meaning:
    """What the values of a page mean, as its PhotometricInterpretation and ExtraSamples say.

    Attributes:
      bands: after `apply`.
      alpha: see `Stored`.
    """

    def __init__(self, page: Any, bands: int):
        self._page, self.bands, self.alpha = page, bands, ""
        self._kind, self._bits = page.photometric, page.bitspersample
        extra = tuple(page.extrasamples)
        self._cmyk = page.photometric == SEPARATED and page.tags.valueof(INK_SET, CMYK) == CMYK
        if self._kind == PALETTE:
            if bands != 1 or page.colormap is None:
                raise Unreadable("a TIFF with a palette and several bands; save it as RGB")
            self._colors, self.bands = _palette(page.colormap), 3
        elif self._cmyk:
            if bands - len(extra) != 4:
                raise Unreadable(f"a TIFF of inks (CMYK) with {bands - len(extra)} bands; save it as RGB")
            self.bands = bands - 1
        if bands == page.samplesperpixel and len(extra) == 1 and self.bands in (2, 4):
            self.alpha = {1: ASSOCIATED, 2: STRAIGHT}.get(int(extra[0]), "")
        if self._kind == MINISWHITE and np.dtype(page.dtype).kind not in "bui":
            raise Unreadable(f"a TIFF of {page.dtype} in which 0 is white; save it with 0 as black")

    def dtype(self, stored: np.dtype) -> np.dtype:
        """The type that `apply` gives."""
        if self._kind == PALETTE:
            return self._colors.dtype
        return np.dtype(np.uint8) if self._expands else stored

    @property
    def _expands(self) -> bool:
        return isinstance(self._bits, int) and self._bits < 8 and self._kind in (MINISWHITE, MINISBLACK, MASK)

    def apply(self, values: np.ndarray) -> np.ndarray:
        """[height, width, stored bands] -> [height, width, bands]."""
        if self._kind == PALETTE:
            return self._colors[values[..., 0]]
        if self._kind == MINISWHITE:
            colors = values.shape[2] - len(self._page.extrasamples)  # others have no black and white
            most = values.dtype.type(2**self._bits - 1)
            values[..., :colors] = most - values[..., :colors] if values.dtype.kind == "u" else ~values[..., :colors]
        if self._expands:  # black and white, 4 and 16 grays: from 0 to 255, as in a PNG
            return values.astype(np.uint8) * np.uint8(255 // (2**self._bits - 1))
        return _from_inks(values) if self._cmyk else values


def _palette(colormap: np.ndarray) -> np.ndarray:
    """[values, 3]: uint8 if the 16 bits of the file hold 8, else uint16."""
    colors = np.ascontiguousarray(np.asarray(colormap).T)
    high = colors >> 8
    if np.array_equal(high * 257, colors) or np.array_equal(high << 8, colors):
        return high.astype(np.uint8)
    return colors.astype(np.uint16)


def _from_inks(values: np.ndarray) -> np.ndarray:
    """CMYK and perhaps more -> RGB and the same, as libtiff has it: (white - K) * (white - ink) / white."""
    if values.dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)):
        raise Unreadable(f"a TIFF of inks (CMYK) as {values.dtype}; save it as RGB")
    white = int(np.iinfo(values.dtype).max)
    inks = values.astype(np.uint32)
    colors = (white - inks[..., 3:4]) * (white - inks[..., :3]) // white
    return np.concatenate([colors.astype(values.dtype), values[..., 4:]], axis=2)


def nodata(page: Any) -> float | None:
    """GDAL's, if it is a number."""
    text = page.tags.valueof(GDAL_NODATA)
    try:
        value = math.nan if text is None else float(str(text).strip("\0 "))
    except ValueError:
        return None
    return None if math.isnan(value) else value  # NaN is there already


def band_names(tif: Any, page: Any, bands: int) -> tuple[str, ...]:
    """The names of GDAL's metadata, or of OME's channels, if there is one for each band; else ()."""
    names: dict[int, str] = {}
    with contextlib.suppress(ElementTree.ParseError, ValueError):
        if text := page.tags.valueof(GDAL_METADATA):
            for item in ElementTree.fromstring(text).iter("Item"):
                if item.get("role") == "description":
                    names[int(item.get("sample", 0))] = item.text or ""
        elif tif.is_ome and tif.ome_metadata:
            names = dict(enumerate(_first_image_channels(tif.ome_metadata)))
    return tuple(names[k] for k in range(bands)) if sorted(names) == list(range(bands)) and all(names.values()) else ()


def _first_image_channels(text: str) -> Iterator[str]:
    root = ElementTree.fromstring(text)
    pixels = root.find(".//{*}Pixels")
    for channel in () if pixels is None else pixels.iterfind("{*}Channel"):
        yield channel.get("Name", "")

"""TIFF in all its layouts, by tifffile: which pages are images, and which are bands of one."""

import io
import itertools
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from ssl_jax.data.formats.errors import Unreadable
from ssl_jax.data.formats.stored import (
    Opened,
    Stored,
    check_count,
    check_size,
    decoded_later,
    upright,
    without_nodata,
)
from ssl_jax.data.formats.tiff_values import Meaning, band_names, check_page, nodata
from ssl_jax.data.formats.tiff_windows import FileBytes, Image, axis_sizes, raw_window

# The reader reports a file that cannot be decoded once, by name. tifffile would log warnings of its own for each.
logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)

# tifffile's letters: samples, channels and emission wavelengths are bands; I and Q say nothing; others are images.
BAND_AXES, UNSTATED_AXES = "CES", "IQ"
PLAIN = ("generic", "shaped", "uniform")  # kinds of series, as tifffile names them, without metadata of a program
SLIDES = ("svs", "ndpi", "scn", "bif", "philips", "avs")  # whose first series is the slide; others: label, overview
ORIENTATION = 274


def open_file(source: Path | bytes, pages: str = "") -> Opened:
    """The images of a TIFF. Overviews, thumbnails and masks of pixels are left out.

    Args:
      pages: what the pages are if the file does not say it: "bands" of one image, "images", or "" to refuse it.
    Raises: Unreadable that names the remedy; whatever tifffile raises for damaged files.
    """
    opened: Any = source if isinstance(source, Path) else io.BytesIO(source)
    # OME-XML may name other files of the disk, and so may the next two, which are not opened for it.
    tif = tifffile.TiffFile(opened, _multifile=False, is_mmstack=False, is_ndtiff=False)
    try:
        data = FileBytes(tif, source)
        images = _images(tif, pages)
        return Opened(len(images), lambda k: _stored(tif, data, images[k]), tif.close)
    except BaseException:
        tif.close()
        raise


def _images(tif: Any, pages: str) -> list[Image]:
    series = list(tif.series)
    if not series:
        raise Unreadable("a TIFF without images")
    plain = series[0].kind in PLAIN
    if series[0].kind in SLIDES:
        series = series[:1]
    elif plain:
        series = [one for one in series if not _is_beside(one.keyframe)] or series
        if len(series) > 1 and not pages:
            raise _unstated(f"{len(series)} sets of pages, of different sizes or types")
        if len(series) > 1 and pages == "bands":
            raise Unreadable(
                f"a TIFF of {len(series)} sets of pages, of different sizes or types, cannot be the bands of one image "
                "(data.pages=bands)"
            )
    found: list[Image] = []
    for one in series:
        sizes = axis_sizes(one)
        unstated = math.prod(size for axis, size in sizes.items() if axis[0] in UNSTATED_AXES)
        if unstated > 1 and not pages:
            raise _unstated(f"{unstated} pages")
        bands = BAND_AXES + (UNSTATED_AXES if pages == "bands" else "")
        of_images = {axis: size for axis, size in sizes.items() if axis[0] not in "YX" + bands}
        check_count(len(found) + math.prod(of_images.values()))
        for index in itertools.product(*map(range, of_images.values())):
            found.append(Image(one, dict(zip(of_images, index, strict=True))))
    return found


def _is_beside(page: Any) -> bool:
    """A reduced copy of another page, or its mask."""
    return page.is_reduced or page.is_mask


def _unstated(what: str) -> Unreadable:
    return Unreadable(
        f"a TIFF of {what}, and it does not say what they are; use data.pages=bands (of one image) or "
        "data.pages=images (one each)"
    )


def _stored(tif: Any, data: FileBytes, image: Image) -> Stored:
    page = image.series.keyframe
    check_page(page)
    bands_by, window = raw_window(data, image)
    sizes = axis_sizes(image.series)
    height, width = sizes["Y"], sizes["X"]
    bands = math.prod(sizes[axis] for axis in bands_by)
    meaning = Meaning(page, bands)
    missing = nodata(page)

    def read(top: int, left: int, h: int, w: int) -> np.ndarray:
        return without_nodata(meaning.apply(window(top, left, h, w)), missing)

    dtype = np.dtype(page.dtype).newbyteorder("=")
    shape = (height, width, bands)
    facts: dict[str, Any] = dict(alpha=meaning.alpha, band_names=band_names(tif, page, meaning.bands), nodata=missing)
    orientation = page.tags.valueof(ORIENTATION, 1)
    orientation = orientation if orientation in range(1, 9) else 1
    after = (height, width, meaning.bands)
    in_one_strip = not page.is_tiled and len(page.dataoffsets) == page.shaped[0] and image.series.dataoffset is None
    if not in_one_strip and orientation == 1:
        return Stored(after, meaning.dtype(dtype), read, True, **facts)
    turned = (width, height, meaning.bands) if orientation >= 5 else after
    check_size(shape, dtype.itemsize)

    def decode() -> np.ndarray:
        return upright(read(0, 0, height, width), orientation)

    return decoded_later(turned, meaning.dtype(dtype), decode, **facts)

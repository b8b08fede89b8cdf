"""An image as its file stores it, and how it becomes the image that is trained on: type, alpha, bands, channels."""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Integer, Num, Shaped

from ssl_jax import paths
from ssl_jax.data.formats.errors import Unreadable
from ssl_jax.paths import AnyPath

# Of one image: 67 million RGB pixels of 16 bits. Each thread that decodes holds one. Larger ones are read by windows.
MAX_IMAGE_BYTES = 3 * 2**27
MAX_BYTES = 2**28  # of a file that is read as a whole
STRAIGHT, ASSOCIATED = "straight", "associated"  # alpha beside the colors, or multiplied into them
EXACT_IN_FLOAT32 = 2**24  # all integers up to it
MAX_IMAGES = 2**17  # in one file: a damaged header may promise billions
PAGES = ("", "bands", "images")

Window = Callable[[int, int, int, int], np.ndarray]  # top, left, height, width -> [height, width, bands]


@dataclasses.dataclass(frozen=True)
class Stored:
    """One image of a file, before it is read.

    Attributes:
      shape: (height, width, bands).
      dtype: of what `window` gives.
      window: (top, left, height, width) -> those pixels, [height, width, bands].
      windowed: `window` decodes no more than it needs. If not, it decodes the whole image at its first call, and keeps
        it.
      alpha: "straight" or "associated" if the last band is alpha beside one or three colors; "" if it is not.
      band_names: as the file's metadata give them; () if they do not.
      nodata: the value that stands for missing pixels, as the file's metadata give it; None if they do not.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype
    window: Window
    windowed: bool = False
    alpha: str = ""
    band_names: tuple[str, ...] = ()
    nodata: float | None = None

    def whole(self) -> Shaped[np.ndarray, "height width bands"]:
        """Raises: Unreadable for more than MAX_IMAGE_BYTES."""
        check_size(self.shape, self.dtype.itemsize)
        return self.window(0, 0, *self.shape[:2])


@dataclasses.dataclass(frozen=True)
class Opened:
    """An open file: the number of its images, and image k (from 0) as `image(k)`."""

    count: int
    image: Callable[[int], Stored]
    close: Callable[[], None] = lambda: None


def decoded(image: Shaped[np.ndarray, "height width bands"], **facts: Any) -> Stored:
    """A `Stored` of an image that is decoded already."""
    shape = (image.shape[0], image.shape[1], image.shape[2])
    return Stored(shape, image.dtype, lambda top, left, h, w: image[top : top + h, left : left + w], **facts)


def decoded_later(
    shape: tuple[int, int, int], dtype: np.dtype, decode: Callable[[], np.ndarray], **facts: Any
) -> Stored:
    """A `Stored` that `decode` makes as a whole when it is first asked for. Raises: Unreadable as `check_size`."""
    check_size(shape, dtype.itemsize)
    whole = functools.cache(decode)
    return Stored(shape, dtype, lambda top, left, h, w: whole()[top : top + h, left : left + w], **facts)


def check_size(shape: Sequence[int], itemsize: int) -> None:
    """Raises: Unreadable for an image [height, width, bands] without pixels or of more than MAX_IMAGE_BYTES."""
    height, width, bands = shape
    if min(shape) < 1:
        raise Unreadable(f"its header says that it has {width} x {height} pixels of {bands} bands")
    if math.prod(shape) * itemsize > MAX_IMAGE_BYTES:
        raise Unreadable(
            f"{width} x {height} pixels, {bands} x {itemsize} bytes each; no more than {MAX_IMAGE_BYTES:,} bytes are "
            "decoded, so scale it down or cut it into tiles"
        )


def check_channels(channels: int | None, bands: Sequence[int] = ()) -> None:
    """Raises: ValueError for numbers of channels and indices of bands that no image has."""
    if channels is not None and channels < 1:
        raise ValueError(
            f"channels must be 1 (gray), 3 (RGB), the number of the images' bands, or None, got {channels}"
        )
    if any(band < 0 for band in bands):
        raise ValueError(f"bands must be indices from 0 on, got {tuple(bands)}")


def check_pages(pages: str) -> None:
    """Raises: ValueError for what is none of PAGES."""
    if pages not in PAGES:
        raise ValueError(f"pages must be 'bands', 'images', or '' where files say what they are, got {pages!r}")


def check_count(images: int) -> None:
    """Raises: Unreadable for a file of more than MAX_IMAGES."""
    if images > MAX_IMAGES:
        raise Unreadable(f"{images:,} images in one file; no more than {MAX_IMAGES:,} are read, so divide it")


def check_bytes(size: int) -> None:
    """Raises: Unreadable for a file of more than MAX_BYTES."""
    if size > MAX_BYTES:
        raise Unreadable(f"{size:,} bytes; no more than {MAX_BYTES:,} are read, so scale it down")


def whole_file(source: AnyPath | str | bytes, size: int | None = None) -> bytes:
    """The bytes of a file, of this `size` if it is known. Raises: Unreadable as `check_bytes`, OSError, StoreError."""
    if isinstance(source, bytes):
        return source
    if paths.is_address(text := os.fspath(source)):
        return _whole_stored(paths.path(text))
    check_bytes(os.stat(source).st_size if size is None else size)
    with open(source, "rb", buffering=0) as file:  # the methods of a Path take some microseconds more
        return file.read()


def _whole_stored(path: AnyPath) -> bytes:
    """Of a file in a store. One request: another one for its size would take as long again."""
    try:
        data = paths.read_start(path, MAX_BYTES + 1)
    except FileNotFoundError:
        raise Unreadable("gone, or not a regular file") from None
    check_bytes(len(data))
    return data


def bits_dtype(bits: int, *, signed: bool = False) -> np.dtype:
    """The least integer type for values of so many bits."""
    size = next((size for size in (1, 2, 4, 8) if bits <= 8 * size), None)
    if bits < 1 or size is None:
        raise Unreadable(f"its header says that a value has {bits} bits")
    return np.dtype(f"{'i' if signed else 'u'}{size}")


def scaled(stored: Shaped[np.ndarray, "*shape"], slope: float, intercept: float) -> Shaped[np.ndarray, "*shape"]:
    """stored * slope + intercept. Integers stay integers if slope and intercept are."""
    if slope == 1 and intercept == 0:
        return stored
    if np.issubdtype(stored.dtype, np.integer) and float(slope).is_integer() and float(intercept).is_integer():
        most = int(np.iinfo(stored.dtype).max) * 2 * abs(int(slope)) + abs(int(intercept))
        if most < 2**63:
            return stored.astype(np.int64) * int(slope) + int(intercept)
    return stored.astype(np.float64) * slope + intercept


def without_nodata(image: Shaped[np.ndarray, "*shape"], nodata: float | None) -> Shaped[np.ndarray, "*shape"]:
    """Floats with NaN in place of `nodata`; integers as they are."""
    if nodata is None or not np.issubdtype(image.dtype, np.floating):
        return image
    with np.errstate(over="ignore"):  # of a double's least value in a file of floats
        return np.where(image == image.dtype.type(nodata), image.dtype.type(np.nan), image)


def own_dtype(dtype: np.dtype) -> np.dtype:
    """uint8, uint16, int16 or float32: the least that holds all values of `dtype`.

    float32 for larger types: `own_type` says of integers that they do not fit, and rounds float64.

    Raises: Unreadable for complex numbers, text, records.
    """
    if dtype.kind not in "buif":
        raise Unreadable(f"its values are {dtype}; save them as integers or floats, one number for each band")
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    if dtype == np.int8:
        return np.dtype(np.int16)
    return dtype.newbyteorder("=") if dtype.str[1:] in ("u1", "u2", "i2", "f4") else np.dtype(np.float32)


def own_type(
    image: Shaped[np.ndarray, "height width bands"], dtype: np.dtype | None = None
) -> Num[np.ndarray, "height width bands"]:
    """The image as uint8, uint16, int16 or float32, whichever is the least that holds its values exactly.

    Integers of 32 and 64 bits become uint16 or int16, by their sign, if all values fit, else float32. float64 is
    rounded to float32.

    Args:
      dtype: the type to take, of `own_dtype`, whatever the values: windows of one image must have one type.
    Raises: Unreadable for integers that float32 does not hold exactly, and as `own_dtype`.
    """
    wanted = dtype or own_dtype(image.dtype)
    if image.dtype.kind in "ui" and wanted == np.float32:
        low, high = int(image.min(initial=0)), int(image.max(initial=0))
        narrow = np.iinfo(np.uint16 if image.dtype.kind == "u" else np.int16)
        if dtype is None and narrow.min <= low and high <= narrow.max:
            wanted = np.dtype(narrow.dtype)
        elif max(-low, high) > EXACT_IN_FLOAT32:
            raise Unreadable(
                f"its {image.dtype} values reach from {low:,} to {high:,}; float32 holds integers exactly up to "
                f"{EXACT_IN_FLOAT32:,}, so save it as uint16, int16 or float32"
            )
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes inf
        return np.ascontiguousarray(image.astype(wanted, copy=False))


def upright(image: Shaped[np.ndarray, "height width *bands"], orientation: int) -> Shaped[np.ndarray, "h w *bands"]:
    """Turned by an EXIF orientation, 1 to 8.

    1 to 4 are: as it is, mirrored, turned by 180 degrees, flipped. 5 to 8 are the same four after swapping the axes.
    """
    transposed, turn = divmod(orientation - 1, 4)
    if transposed:
        image = image.swapaxes(0, 1)
    if turn in (1, 2):
        image = image[:, ::-1]
    if turn in (2, 3):
        image = image[::-1]
    return image


def bands_after(shape: tuple[int, int, int], alpha: str, channels: int | None, bands: Sequence[int]) -> int:
    """The number of channels that `arrange` gives for an image of `shape`. Raises: Unreadable as `arrange`."""
    count = shape[2]
    if bands:
        outside = [band for band in bands if not 0 <= band < count]
        if outside:
            raise Unreadable(
                f"the image has {count} bands, 0 to {count - 1}; data.bands={tuple(bands)} asks for band {outside[0]}"
            )
        count = len(bands)
    elif alpha and channels != count:
        count -= 1
    if channels in (None, count) or {count, channels} == {1, 3}:
        return channels or count
    some = tuple(range(min(channels or 1, count)))
    raise Unreadable(
        f"the image has {count} bands, and data.channels={channels}; bands are not converted, so use "
        f"data.channels={count}" + (f", or data.bands={some} to keep some of them" if len(some) < count else "")
    )


def arrange(
    image: Shaped[np.ndarray, "height width bands"], alpha: str, channels: int | None, bands: Sequence[int]
) -> Shaped[np.ndarray, "height width channels"]:
    """The stored image with the channels that are asked for.

    Args:
      image: as stored, RGB if it has color.
      alpha: of its last band, see `Stored`. It is put over white, unless `bands` are given or `channels` counts it.
      channels: 1 or 3 converts between gray and RGB; any other number must be the image's own; None: as it is.
      bands: indices of the stored bands to take, before `channels`; (): all.
    Raises: Unreadable that names the remedy.
    """
    bands_after((image.shape[0], image.shape[1], image.shape[2]), alpha, channels, bands)
    if bands:
        image = image[:, :, list(bands)]
    elif alpha and channels != image.shape[2]:
        image = over_white(image[:, :, :-1], image[:, :, -1:], alpha)
    if channels not in (None, image.shape[2]):
        image = _gray(image) if channels == 1 else _repeated(image)
    return np.ascontiguousarray(image)


def over_white(
    color: Shaped[np.ndarray, "height width colors"], alpha: Shaped[np.ndarray, "height width 1"], kind: str
) -> Integer[np.ndarray, "height width colors"]:
    """Raises: Unreadable for types without a known white."""
    if color.dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)):
        raise Unreadable(
            f"alpha beside colors of {color.dtype}, whose white is not known; data.channels={color.shape[2] + 1} keeps "
            f"it, data.bands={tuple(range(color.shape[2]))} leaves it out"
        )
    white = int(np.iinfo(color.dtype).max)
    # The next wider type holds white * white + white / 2; floats would take five times the image's own memory.
    alpha = alpha.astype(np.uint16 if white == 255 else np.uint32)
    if kind == ASSOCIATED:
        return np.minimum(color + (white - alpha), white).astype(color.dtype)
    shown = color * alpha
    shown += white * (white - alpha)
    shown += white // 2  # so that // rounds
    shown //= white
    return shown.astype(color.dtype)


def _gray(image: Num[np.ndarray, "height width 3"]) -> Num[np.ndarray, "height width 1"]:
    """0.299 R + 0.587 G + 0.114 B, rounded in the image's own type."""
    image = np.ascontiguousarray(image)
    # OpenCV converts uint16 with errors above a half, and int16 not at all.
    if image.dtype.name in ("uint16", "int16"):
        return np.rint(cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2GRAY)).astype(image.dtype)[..., None]
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]


def _repeated(image: Num[np.ndarray, "height width 1"]) -> Num[np.ndarray, "height width 3"]:
    image = np.ascontiguousarray(image)
    if image.dtype == np.int16:
        return _repeated(image.view(np.uint16)).view(np.int16)
    return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)

"""Image files of any format: which are read, how many images one holds, one of them as a whole or by windows.

with formats.open_image("scene.tif", bands=(3, 2, 1)) as image:
    image.shape, image.dtype                        # (20000, 20000, 3), uint16
    image.read(1000, 2000, 256, 256)                # top, left, height, width: decodes the tiles that it needs
"""

import contextlib
import dataclasses
import errno
import os
import stat
import threading
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Num

from ssl_jax import paths
from ssl_jax.data.formats import photos, table
from ssl_jax.data.formats.errors import UndecodableImage, Unreadable, printable, undecodable
from ssl_jax.data.formats.photos import REDUCTIONS, Reduce
from ssl_jax.data.formats.stored import (
    Opened,
    Stored,
    arrange,
    bands_after,
    check_channels,
    check_pages,
    own_dtype,
    own_type,
    whole_file,
)
from ssl_jax.data.formats.table import ENDINGS
from ssl_jax.paths import AnyPath

__all__ = [
    "ENDINGS",
    "REDUCTIONS",
    "Facts",
    "OpenImage",
    "Reduce",
    "UndecodableImage",
    "check_channels",
    "check_pages",
    "decode_image",
    "decodes",
    "look",
    "open_image",
    "printable",
    "read_image",
    "undecodable",
]

_kept = threading.local()  # the file with several images that this thread read last


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a file's header says: the number of its images; of the first of them `band_names` and `nodata`, see
    `OpenImage`."""

    count: int = 1
    band_names: tuple[str, ...] = ()
    nodata: float | None = None


class OpenImage:
    """An open image, for windows of it. Threads may share it.

    Attributes:
      shape: (height, width, bands) of the image that `read` gives windows of.
      dtype: of the windows: uint8, uint16, int16 or float32.
      windowed: a window decodes no more of the file than it needs. If not, the first one decodes the whole image, which
        is then kept until `close`.
      band_names: as the file's metadata give them; () if they do not.
      nodata: the value that stands for missing pixels, as the file's metadata give it; None if they do not. Floats are
        NaN there.
    """

    def __init__(
        self,
        stored: Stored,
        name: str,
        channels: int | None = None,
        bands: Sequence[int] = (),
        close: Callable[[], None] = lambda: None,
    ):
        self._stored, self._name, self._channels, self._bands, self.close = stored, name, channels, tuple(bands), close
        height, width, _ = stored.shape
        self.shape = (height, width, bands_after(stored.shape, stored.alpha, channels, bands))
        self.dtype, self.windowed = own_dtype(stored.dtype), stored.windowed
        self.band_names, self.nodata = _picked(stored.band_names, bands), stored.nodata

    def read(self, top: int, left: int, height: int, width: int) -> Num[np.ndarray, "height width bands"]:
        """The pixels of a window.

        Raises: ValueError for a window that is not within the image; UndecodableImage.
        """
        if not (0 <= top < top + height <= self.shape[0] and 0 <= left < left + width <= self.shape[1]):
            raise ValueError(
                f"a window of {height} x {width} pixels at row {top}, column {left} is not within {self._name}, of "
                f"{self.shape[0]} x {self.shape[1]}"
            )
        with undecodable(self._name):
            window = self._stored.window(top, left, height, width)
            return own_type(arrange(window, self._stored.alpha, self._channels, self._bands), self.dtype)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def open_image(
    path: AnyPath | str,
    *,
    index: int | None = None,
    channels: int | None = None,
    bands: Sequence[int] = (),
    pages: str = "",
    name: str = "",
) -> OpenImage:
    """Opens one image of a file.

    Args:
      index: of the image in the file, from 0; None for a file of one image.
      channels, bands, pages: see `ssl_jax.data.folder`.
      name: of the image, for errors; the path if not given.
    Raises: UndecodableImage.
    """
    path, name = paths.path(path), name or str(path)
    with undecodable(name):
        opened = _open(path, pages)
        try:
            return OpenImage(opened.image(_chosen(index, opened.count)), name, channels, bands, opened.close)
        except BaseException:
            opened.close()
            raise


def look(path: AnyPath, pages: str = "") -> Facts:
    """What the header of a file says. Raises: UndecodableImage."""
    form = table.of_name(path.name)
    if form is not None and not form.several:
        return Facts()
    with undecodable(str(path)):
        opened = _open(path, pages)
        try:
            first = opened.image(0)
            return Facts(opened.count, first.band_names, first.nodata)
        finally:
            opened.close()


def read_image(
    path: AnyPath | str,
    name: str,
    channels: int | None,
    bands: Sequence[int] = (),
    pages: str = "",
    index: int | None = None,
    reduce: Reduce | None = None,
) -> Num[np.ndarray, "height width channels"]:
    """One image of a file, as a whole: the only one if `index` is None. `name`: of the image, for errors.

    reduce: (height, width) -> the number that a JPEG's sides are divided by as it is decoded: 1, 2, 4 or 8.
    Raises: UndecodableImage.
    """
    with undecodable(name):
        text = os.fspath(path)  # the methods of a Path take 7 microseconds more
        size = None if paths.is_address(text) else _check_file(text)
        if text.lower().endswith(table.PHOTOS.endings):
            data = whole_file(text, size)
            if not data or table.PHOTOS.begins(data):
                return photos.decode(data, channels, bands, reduce)
        opened = _open_again(paths.path(path), pages)
        try:
            return _finish(opened.image(_chosen(index, opened.count)), channels, bands)
        finally:
            if opened.count == 1:
                opened.close()


def decode_image(
    data: bytes, channels: int | None, name: str, *, bands: Sequence[int] = (), reduce: Reduce | None = None
) -> Num[np.ndarray, "height width channels"]:
    """The first image in the file, upright, of its own type: uint8, uint16, int16 or float32.

    Alpha is put over white, unless `channels` counts it or `bands` are given. Color becomes gray as 0.299 R + 0.587 G +
    0.114 B, gray becomes three equal channels.

    Args:
      data: a whole file: BMP, GIF, JPEG, PNG, PNM, WebP, npy, or TIFF of one image.
      channels: 1 (gray) and 3 (RGB) convert between these two; any other number must be the image's own; None: as the
        image is.
      name: of the file, for the error.
      bands: indices of the bands to keep, in this order, before `channels`; (): all.
      reduce: see `read_image`.
    Raises: UndecodableImage for anything else, truncated files included, before it takes memory.
    """
    with undecodable(name):
        form = next((form for form in (table.TIFF, table.NPY) if form.begins(data)), None)
        if form is None:
            return photos.decode(data, channels, bands, reduce)
        opened = form.module().open_file(data)
        return _finish(opened.image(_chosen(None, opened.count)), channels, bands)


def decodes(data: bytes) -> bool:
    """Whether a file that begins so is of a format that `decode_image` reads."""
    return any(form.begins(data[: table.HEAD]) for form in (table.PHOTOS, table.TIFF, table.NPY))


def _finish(stored: Stored, channels: int | None, bands: Sequence[int]) -> Num[np.ndarray, "height width channels"]:
    bands_after(stored.shape, stored.alpha, channels, bands)  # before the work
    return own_type(arrange(stored.whole(), stored.alpha, channels, bands))


def _open(path: AnyPath, pages: str) -> Opened:
    if paths.is_remote(path):
        return _open_copy(path, pages)
    _check_file(path)
    head = paths.read_start(path, table.HEAD)
    form = table.of_content(head, path.name)
    if form is None or not head:
        raise Unreadable("not an image of a format that is read" if head else "the file is empty")
    return form.module().open_file(path, pages)


def _open_copy(path: AnyPath, pages: str) -> Opened:
    """Of a file in a store: formats other than photos are read here and there in the file, so it is copied first."""
    with contextlib.ExitStack() as stack:
        try:
            opened = _open(stack.enter_context(paths.local(path)), pages)
        except FileNotFoundError:
            raise Unreadable("gone, or not a regular file") from None
        stack.callback(opened.close)
        return dataclasses.replace(opened, close=stack.pop_all().close)


def _open_again(path: AnyPath, pages: str) -> Opened:
    """As `_open`. A file with several images stays open in this thread until another one is read: its next image then
    needs no new reading of its header and, if it is compressed, of what stands before the image."""
    if paths.is_remote(path):
        key = (path, pages)
    else:
        found = os.stat(path)
        key = (path, found.st_mtime_ns, found.st_size, pages)
    if getattr(_kept, "key", None) == key:
        return _kept.opened
    opened = _open(path, pages)
    if opened.count > 1:
        if hasattr(_kept, "opened"):
            _kept.opened.close()
        _kept.key, _kept.opened = key, opened
    return opened


def _check_file(path: AnyPath | str) -> int:
    """Its bytes. Raises: Unreadable if it is not a file: reading a pipe or a device would wait; OSError if the disk or
    its rights withhold it."""
    try:
        found = os.stat(path)
    except ValueError:  # a zero byte in the name
        found = None
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        found = None
    if found is None or not stat.S_ISREG(found.st_mode):
        raise Unreadable("a broken link" if os.path.islink(path) else "gone, or not a regular file")
    return found.st_size


def _chosen(index: int | None, count: int) -> int:
    if index is None:
        if count != 1:
            raise Unreadable(f"the file has {count} images, and none of them is chosen")
        return 0
    if not 0 <= index < count:
        raise Unreadable(f"the file has {count} images now, but image {index} is asked for; was it changed?")
    return index


def _picked(names: tuple[str, ...], bands: Sequence[int]) -> tuple[str, ...]:
    return tuple(names[band] for band in bands) if names and bands else names

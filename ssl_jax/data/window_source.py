"""Large images by windows: each window counts as an image.

scenes = data.windows(data.folder("SCENES", channels=None), 512)
len(scenes)                    # windows of all scenes
scenes.read(0)                 # decodes no more than the window, where the format allows: tiled TIFF, zarr, npy
"""

# pyright: reportMissingTypeStubs=false

import copy
import functools
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int32, Num
from tqdm import tqdm

from ssl_jax.data.formats import OpenImage, UndecodableImage
from ssl_jax.data.sources import Source, digest_of
from ssl_jax.data.threads import LastUsed, in_order

THREADS = 8
MOST_FILES = 256  # open at a time
MEMORY_BYTES = 2**31

Places = Int[np.ndarray, "..."]  # where the windows of an image begin, in one direction
Labeled = tuple[Num[np.ndarray, "height width channels"], int]  # an image, and its label or -1


class Windows(Source):
    """Square windows of the images of another source, on a grid that covers each image from edge to edge.

    A window has its image's label, and its image's group, or else the image itself is its group.

    Args:
      side: of a window, in pixels. An image that is smaller in one direction is taken whole in that direction.
      stride: the most pixels from one window to the next; `side` if 0. Windows of a row are at equal distances, so they
        overlap a little where the stride does not divide the image.
      memory_bytes: images whose format gives no windows, such as JPEG, are decoded whole. The last used of them stay
        decoded in so much memory; others are decoded again for each window.

    Attributes:
      side, stride: in pixels.
      decoded_bytes: that the images take together whose format gives no windows. If that is more than `memory_bytes`,
        windows in random order decode an image again and again.
      image_of: [windows], the index of each window's image in the source.

    Raises: ValueError for a side below 1, and a stride below 0 or above `side`, which would leave gaps.
    """

    def __init__(self, source: Source, side: int, *, stride: int = 0, memory_bytes: int = MEMORY_BYTES):
        if side < 1 or not 0 <= stride <= side:
            raise ValueError(
                f"a window's side must be at least 1 and its stride 0 to the side, got side={side}, stride={stride}"
            )
        self._source, self.side, self.stride = source, side, stride or side
        self.name, self.class_names, self.nodata = source.name, source.class_names, source.nodata
        self._opened = _last_used(source, memory_bytes)
        looks = list(_look(source))
        self.memory_bytes, self.decoded_bytes = memory_bytes, sum(look.decoded_bytes for look in looks)
        self._grids = [
            (places(look.height or side, side, self.stride), places(look.width or side, side, self.stride))
            for look in looks
        ]
        self._image = np.repeat(np.arange(len(source)), [len(rows) * len(columns) for rows, columns in self._grids])
        self._first = np.searchsorted(self._image, np.arange(len(source)))  # window of each image
        self.image_of = self._image
        self.targets = None if source.targets is None else source.targets.of(self._image)
        self.groups = self._image if source.groups is None else source.groups[self._image]
        self._labels = None if source.labels is None else source.labels[self._image]
        self.random = True

    @property
    def labels(self) -> Int32[np.ndarray, " windows"] | None:
        return self._labels

    def __len__(self) -> int:
        return len(self._image)

    def read(self, index: int) -> Labeled:
        return self._read(index, None)

    def read_random(self, index: int, rng: np.random.Generator) -> Labeled:
        """A window at a random place. Over all windows of an image, each place is equally likely."""
        return self._read(index, rng)

    def with_channels(self, channels: int) -> "Windows":
        found = copy.copy(self)
        found._source = self._source.with_channels(channels)
        found._opened = _last_used(found._source, self.memory_bytes)
        return found

    def image_name(self, index: int) -> str:
        top, left = self._place(index)
        return f"{self._source.image_name(int(self._image[index]))}@{top},{left}"

    def whole_name(self, index: int) -> str:
        return self._source.image_name(int(self._image[index]))

    def origin(self, index: int) -> str | None:
        found, (top, left) = self._source.origin(int(self._image[index])), self._place(index)
        return found and f"{found}@{top},{left}"

    def digest(self) -> str:
        return digest_of([self._source.digest(), str(self.side), str(self.stride)])

    def _read(self, index: int, rng: np.random.Generator | None) -> Labeled:
        opened = self._opened(int(self._image[index]))
        height, width, _ = opened.shape
        most = max(height - self.side, 0), max(width - self.side, 0)
        # A file that was exchanged for a smaller one since it was looked at has smaller places.
        top, left = map(min, self._place(index) if rng is None else self._random_place(index, most, rng), most)
        pixels = opened.read(top, left, min(self.side, height), min(self.side, width))
        return pixels, -1 if self._labels is None else int(self._labels[index])

    def _place(self, index: int) -> tuple[int, int]:
        """(top, left) of a window on the grid."""
        rows, columns, row, column = self._cell(index)
        return int(rows[row]), int(columns[column])

    def _random_place(self, index: int, most: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
        """(top, left) of a window, each 0 to `most`: all places are divided evenly among the windows of an image."""
        rows, columns, row, column = self._cell(index)
        down, across = rng.random(2)
        top, left = (row + down) / len(rows) * (most[0] + 1), (column + across) / len(columns) * (most[1] + 1)
        return int(top), int(left)

    def _cell(self, index: int) -> tuple[Places, Places, int, int]:
        """(where the image's rows of windows begin, where its columns do, the window's row, its column)."""
        image = int(self._image[index])
        rows, columns = self._grids[image]
        return rows, columns, *divmod(index - int(self._first[image]), len(columns))


def places(length: int, side: int, stride: int) -> Places:
    """Where windows begin that cover `length` pixels, at equal distances of at most `stride`."""
    if length <= side:
        return np.zeros(1, int)
    return np.rint(np.linspace(0, length - side, -(-(length - side) // stride) + 1)).astype(int)


class _Look(NamedTuple):
    """An image's size, 0 x 0 if it cannot be decoded; the bytes it takes decoded, if its format gives no windows."""

    height: int
    width: int
    decoded_bytes: int


def _look(source: Source) -> Iterator[_Look]:
    """Opens each image. One that cannot be decoded is given one window, and is named when that is read."""

    def look(index: int) -> _Look:
        try:
            with source.open(index) as image:
                return _Look(*image.shape[:2], _decoded_bytes(image))
        except UndecodableImage:
            return _Look(0, 0, 0)

    with (
        ThreadPoolExecutor(THREADS, thread_name_prefix="sizes") as pool,
        tqdm(desc=f"sizes of the images in {source.name}", total=len(source), unit=" images", delay=1) as progress,
    ):
        for _, found in in_order(pool, look, range(len(source)), 2 * THREADS):
            yield found
            progress.update()


def _last_used(source: Source, memory_bytes: int) -> LastUsed[int, OpenImage]:
    return LastUsed(functools.partial(_open, source), _decoded_bytes, memory_bytes, MOST_FILES)


def _open(source: Source, index: int) -> OpenImage:
    image = source.open(index)
    # Another thread may read it when it is no longer kept: closed is what nobody holds.
    weakref.finalize(image, image.close)
    if not image.windowed:
        image.read(0, 0, 1, 1)  # decodes it, while others wait
    return image


def _decoded_bytes(image: OpenImage) -> int:
    """What an image takes that is decoded as a whole; 0 if it is read by windows."""
    if image.windowed:
        return 0
    height, width, channels = image.shape
    return height * width * channels * image.dtype.itemsize

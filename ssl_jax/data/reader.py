"""The images of one batch: read, decoded and cropped in threads.

OpenCV, SciPy and NumPy free Python's lock while they work on an image, so threads suffice: `ssl_jax bench-input` says
for how long the lock is held.
"""

# pyright: reportMissingTypeStubs=false

import functools
import itertools
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import cv2
import numpy as np
from jaxtyping import Bool
from numpy.random.bit_generator import ISeedSequence
from tqdm import tqdm

from ssl_jax.data.crop import RandomCrop, center_crop, random_crop
from ssl_jax.data.formats import REDUCTIONS, Reduce, UndecodableImage
from ssl_jax.data.sources import Source
from ssl_jax.data.threads import default_threads

# Images are decoded in parallel already; OpenCV's own threads within each call would only get in the way.
cv2.setNumThreads(1)

Batch = dict[str, Any]
R = TypeVar("R")
READ_BATCH = 512  # images read at a time into memory
PLACE = 2**32  # of the random numbers of a window's place, beside those of views 0, 1, ...
MAX_REPLACEMENTS = 100  # tries to replace an image by another; if none can be decoded, the data are gone


class ImagesError(ValueError):
    """A data set that cannot be trained or evaluated on; its text is for the user."""


class Reader:
    """Reads images of a source in threads, many at once, and notes those that cannot be decoded.

    Args:
      threads: 0: `default_threads()`.

    Attributes:
      source: of the images.
      skipped: {name: reason} of the images that cannot be decoded, so far.
    """

    def __init__(self, source: Source, threads: int):
        self.skipped: dict[str, str] = {}
        self.source, self._threads = source, threads or default_threads()
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="decode")

    def first(self) -> np.ndarray:
        """The first image that can be decoded. Raises: ImagesError if none can."""
        for index in range(len(self.source)):
            if (found := self._read(index, lambda height, width: 1)) is not None:
                return found[0]
        raise none_decodable(self.skipped)

    def read_all(self, size: tuple[int, int]) -> tuple[Batch, Bool[np.ndarray, " images"]]:
        """(`read_centers` with a row for each image of the source; whether each image could be decoded)."""
        everything: Batch = {}
        indices = range(len(self.source))
        if (images := self.source.in_memory(size)) is not None:
            # One by one, the 60,000 images of Fashion-MNIST take 0.6 s.
            labels = np.full(len(indices), -1, np.int32) if self.source.labels is None else self.source.labels
            return {"image": images, "index": np.array(indices), "label": labels}, np.ones(len(indices), bool)
        decoded = np.zeros(len(indices), bool)
        with tqdm(desc=f"reading {self.source.name}", total=len(indices), unit=" images", delay=1) as progress:
            for start in indices[::READ_BATCH]:
                part = indices[start : start + READ_BATCH]
                batch = self.read_centers(part, size) or {}
                if not everything:
                    everything = {name: np.empty((len(indices), *v.shape[1:]), v.dtype) for name, v in batch.items()}
                for name, values in batch.items():
                    everything[name][batch["index"]] = values
                decoded[batch.get("index", [])] = True
                progress.update(len(part))
        return everything, decoded

    def read_centers(self, indices: Sequence[int], size: tuple[int, int], share: float = 1.0) -> Batch | None:
        """{"image", "index" int64, "label" int32} of the images that can be decoded; None if none can."""

        def row(index: int) -> tuple[np.ndarray, int, int] | None:
            if (found := self._read(index, reduce)) is None:
                return None
            image, label = found
            return center_crop(image, size, share), index, label

        def reduce(height: int, width: int) -> int:
            return reduction(share * min(height / size[0], width / size[1]))

        rows = [row for row in self._map(row, indices) if row is not None]
        if not rows:
            return None
        images, kept, labels = zip(*rows, strict=True)
        return {"image": np.stack(images), "index": np.array(kept, np.int64), "label": np.array(labels, np.int32)}

    def read_crops(
        self,
        indices: Sequence[int],
        crops: Sequence[RandomCrop],
        seed: int,
        step: int,
        black: Sequence[float],
        *,
        like: np.ndarray,
        at_random: bool,
    ) -> Batch:
        """{"crops", "boxes", "index" int64, "label" int32}. like: an image [height, width, channels] of their type."""

        views = tuple(np.empty((len(indices), *crop.size, like.shape[2]), like.dtype) for crop in crops)
        boxes = tuple(np.empty((len(indices), 4), np.float32) for _ in crops)

        def fill(row: int) -> tuple[int, int]:
            def make(index: int) -> tuple[int, int] | None:
                place = crop_rng(seed, step, index, PLACE) if at_random else None
                if (found := self._read(index, reduction_for(crops, seed, step, index), place)) is None:
                    return None
                image, label = found
                if (image.dtype, image.shape[2]) != (like.dtype, like.shape[2]):
                    raise ValueError(
                        f"{self.source.image_name(index)} has {image.shape[2]} channels of {image.dtype}, others have "
                        f"{like.shape[2]} of {like.dtype}; all images must be of one kind"
                    )
                # Written where it stays, in this thread: afterwards one thread would copy the whole batch.
                for number, (crop, view, box) in enumerate(zip(crops, views, boxes, strict=True)):
                    own = crop_rng(seed, step, index, number)
                    first, mover = (crop_rng(seed, step, index, 0), own) if crop.shift else (own, None)
                    view[row], box[row] = random_crop(image, crop, first, black, mover)
                return index, label

            return self.or_another(make, indices[row], seed, step)

        used, labels = zip(*self._map(fill, range(len(indices))), strict=True)
        return {
            "crops": views,
            "boxes": boxes,
            "index": np.array(used, np.int64),
            "label": np.array(labels, np.int32),
        }

    def or_another(self, make: Callable[[int], R | None], index: int, seed: int, step: int) -> R:
        """make(index). If that is None, `make` of another image, which (seed, step, index) alone decide.

        Raises: ImagesError if one image after the other gives None.
        """
        for attempt in range(MAX_REPLACEMENTS):
            if (made := make(index)) is not None:
                return made
            index = int(np.random.default_rng((seed, step, index, attempt)).integers(len(self.source)))
        name, reason = next(reversed(self.skipped.items()))
        raise ImagesError(
            f"{MAX_REPLACEMENTS} images in a row cannot be decoded, for example {name}: {reason}. "
            "Remove or replace the files that the warnings name"
        )

    def _read(
        self, index: int, reduce: Reduce, place: np.random.Generator | None = None
    ) -> tuple[np.ndarray, int] | None:
        """(image, label) as `Source.read_reduced` gives them; with `place` as `Source.read_random` does. None if it
        cannot be decoded."""
        try:
            if place is not None:
                return self.source.read_random(index, place)
            return self.source.read_reduced(index, reduce)
        except UndecodableImage as error:
            if error.name not in self.skipped:
                self.skipped[error.name] = error.reason
                logging.warning("skipped %s", error)
            return None

    def _map(self, work: Callable[[int], R], indices: Sequence[int]) -> list[R]:
        """[work(index) for index in indices]. Each thread does a part of them."""

        def work_on(part: Sequence[int]) -> list[R]:
            return [work(index) for index in part]

        parts = [part.tolist() for part in np.array_split(indices, self._threads)]
        return list(itertools.chain.from_iterable(self._pool.map(work_on, parts)))


class _Key(ISeedSequence):
    """Philox's key, as it is. Given as `key=`, Philox first asks the system for a random one, which takes twice as
    long as all the rest."""

    def __init__(self, seed: int):
        self._words = np.array([seed % 2**64, seed // 2**64], np.uint64)

    def generate_state(self, n_words: int, dtype: Any = np.uint64) -> np.ndarray:
        return self._words


_key = functools.lru_cache(maxsize=8)(_Key)


def crop_rng(seed: int, step: int, index: int, view: int) -> np.random.Generator:
    """Philox maps (key, counter) to random bits. The counter's lowest word, 0 here, counts this generator's draws."""
    return np.random.Generator(np.random.Philox(cast(Any, _key(seed)), counter=[0, view, index, step]))


def reduction_for(crops: Sequence[RandomCrop], seed: int, step: int, index: int) -> Reduce:
    """By what an image may be reduced for the crops that are taken of it in this step."""

    def reduce(height: int, width: int) -> int:
        if any(height * width < 4 * crop.size[0] * crop.size[1] for crop in crops):
            return 1  # most photos; what follows takes time
        rngs = (crop_rng(seed, step, index, 0 if crop.shift else view) for view, crop in enumerate(crops))
        return reduction(min(crop.shrinks(height, width, rng) for crop, rng in zip(crops, rngs, strict=True)))

    return reduce


def reduction(shrinks: float) -> int:
    """The most that a JPEG's sides may be divided by if the part that is needed of it is shrunk so many times."""
    return max(by for by in REDUCTIONS if by <= max(shrinks, 1))


def none_decodable(skipped: dict[str, str]) -> ImagesError:
    """The error of a data set of which no image can be decoded. skipped: {name: reason} of those that were tried."""
    if not skipped:
        return ImagesError("the data set has no images")
    name, reason = next(iter(skipped.items()))
    return ImagesError(f"none of the {len(skipped)} images tried can be decoded, for example {name}: {reason}")

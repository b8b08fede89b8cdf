"""From a source to batches of images on the host: order, decoding, crops, reading ahead.

Batch k is a pure function of (seed, k): nothing is remembered from one batch to the next. So a run resumes at any step
without replaying, and every process of a run makes its own rows of the same batches. Threads call that function ahead
of the training. OpenCV decodes, and frees Python's lock.
"""

# pyright: reportMissingTypeStubs=false

import functools
import itertools
import logging
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import cv2
import numpy as np
from jaxtyping import Bool, Int
from tqdm import tqdm

from ssl_jax.data.crop import RandomCrop, center_crop, random_crop
from ssl_jax.data.formats import REDUCTIONS, Reduce, UndecodableImage
from ssl_jax.data.sources import Source
from ssl_jax.data.threads import in_order

# Images are decoded in parallel already; OpenCV's own threads within each call would only get in the way.
cv2.setNumThreads(1)

Batch = dict[str, Any]
R = TypeVar("R")
THREADS, PREFETCH = 8, 2
READ_BATCH = 512  # images read at a time into memory
PLACE = 2**32  # of the random numbers of a window's place, beside those of views 0, 1, ...
MAX_REPLACEMENTS = 100  # tries to replace an image by another; if none can be decoded, the data are gone
# Evaluation keeps 224/256 of the shorter side, as is usual; below 96 pixels it keeps all of it.
EVAL_SHARE, EVAL_SHARE_FROM = 224 / 256, 96


class ImagesError(ValueError):
    """A data set that cannot be trained or evaluated on; its text is for the user."""


def train_batches(
    source: Source,
    *,
    seed: int,
    batch_size: int,
    image_size: tuple[int, int],
    crops: Sequence[RandomCrop],
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    memory_bytes: int = 2**31,
    at_random: bool = True,
    black: Sequence[float] = (0.0,),
    threads: int = THREADS,
    prefetch: int = PREFETCH,
) -> "Batches":
    """Endless batches for training. Each epoch has another order; images at its end that fill no batch are left out.

    A set that takes no more than `memory_bytes` when decoded is kept in memory, each image as `center_crop` gives it.
    The device makes the views. A batch is
    {"image": [rows, height, width, channels], "index": int32 [rows], "label": int32 [rows]}.

    A larger set is decoded anew for each batch, and the views are cropped here, from the whole images. A batch is
    {"crops": ([rows, *size, channels] for each view), "boxes": (float32 [rows, 4] for each view, see
    `random_crop`), "index", "label"}.

    Images keep the type that the source reads; it must be the same for all. "index" is the image's index in `source`;
    "label" is -1 for an image without one. The order covers all images of the source. Another image replaces one that
    cannot be decoded, in its row alone. So an image that one process, or one start of a run, cannot read moves no other
    image.

    Args:
      seed: of order and crops, >= 0.
      batch_size: images a step over all processes.
      image_size: (height, width) of images in memory.
      crops: one for each view.
      start_step: the step of the first batch.
      process_index, process_count: this process makes only its share of each batch's rows. It reads no other images,
        unless the set is kept in memory: then every process holds the whole set.
      memory_bytes: 0 to keep no set in memory.
      at_random: whether images that are windows of larger ones are read at random places, see `Source.read_random`.
        Then no set of such images is kept in memory.
      black: the value that crops with padding are padded with, of each channel or one for all.
      threads: threads that decode, at least 1.
      prefetch: batches made ahead.
    Raises: ImagesError if the set is smaller than a batch or no image can be decoded, and with a later batch if image
      after image cannot be decoded; ValueError if batch_size does not divide over the processes.
    """
    if batch_size % process_count:
        raise ValueError(
            f"batch_size {batch_size} does not divide over {process_count} processes; "
            f"use {-(-batch_size // process_count) * process_count}"
        )
    share = slice(process_index * batch_size // process_count, (process_index + 1) * batch_size // process_count)
    reader, num_images = _Reader(source, threads), len(source)
    first = reader.first()
    if num_images < batch_size:
        raise ImagesError(
            f"{source.name} has {num_images} images, fewer than one batch; use a batch size of {num_images} or less"
        )
    pixel_bytes, at_random = first.shape[-1] * first.itemsize, at_random and source.random
    if keeps_in_memory(num_images, image_size, pixel_bytes, memory_bytes=memory_bytes, at_random=at_random):
        everything, decoded = reader.read_all(image_size)

        def make(step: int, rows: np.ndarray) -> Batch:
            used = rows.copy()
            for k in np.flatnonzero(~decoded[rows]):
                used[k] = reader.or_another(lambda index: index if decoded[index] else None, int(rows[k]), seed, step)
            return {name: values[used] for name, values in everything.items()}
    else:

        def make(step: int, rows: np.ndarray) -> Batch:
            return reader.read_crops(rows.tolist(), crops, seed, step, black, at_random=at_random)

    def batch(step: int) -> Batch:
        return make(step, batch_rows(step, seed=seed, num_images=num_images, batch_size=batch_size)[share])

    return Batches(batch, range(start_step, sys.maxsize), reader.skipped, prefetch)


def keeps_in_memory(
    num_images: int, image_size: tuple[int, int], pixel_bytes: int, *, memory_bytes: int, at_random: bool
) -> bool:
    """Whether `train_batches` keeps the images in memory.

    pixel_bytes: of one pixel with all its channels. at_random: whether they are windows that are read at random places.
    """
    return not at_random and num_images * image_size[0] * image_size[1] * pixel_bytes <= memory_bytes


def eval_batches(
    source: Source,
    *,
    image_size: tuple[int, int],
    batch_size: int,
    threads: int = THREADS,
    prefetch: int = PREFETCH,
) -> "Batches":
    """Every image that can be decoded, once, in order, in batches {"image", "index", "label"} as of `train_batches`.

    A batch has `batch_size` rows, or fewer at the end and where images cannot be decoded. The images are as
    `center_crop` gives them, with a share of 224/256 from 96 pixels on.

    Raises: ImagesError, at the end, if no image could be decoded.
    """
    reader = _Reader(source, threads)
    share = EVAL_SHARE if min(image_size) >= EVAL_SHARE_FROM else 1.0

    def batch(step: int) -> Batch | None:
        indices = range(len(source))[step * batch_size : (step + 1) * batch_size]
        return reader.read_centers(indices, image_size, share)

    return Batches(batch, range(-(-len(source) // batch_size)), reader.skipped, prefetch)


class Batches(Iterator[Batch]):
    """The batches of `steps`, in order, made before they are asked for.

    Args:
      batch: step -> batch, or None if this step has none; called from several threads.
      skipped: {name: reason} of images that cannot be decoded; `batch` adds those that it meets.
      prefetch: batches made ahead.
    """

    def __init__(self, batch: Callable[[int], Batch | None], steps: range, skipped: dict[str, str], prefetch: int):
        self.skipped, self._found_any = skipped, False
        self._batches: Iterator[Batch | None] = map(batch, steps)
        if prefetch:  # so many are made ahead, each in a thread
            pool = ThreadPoolExecutor(prefetch, thread_name_prefix="batch")
            self._batches = (made for _, made in in_order(pool, batch, steps, prefetch + 1))

    def __next__(self) -> Batch:
        for batch in self._batches:
            if batch is not None:
                self._found_any = True
                return batch
        if not self._found_any:
            raise _none_decodable(self.skipped)
        raise StopIteration


def batch_rows(step: int, *, seed: int, num_images: int, batch_size: int) -> Int[np.ndarray, " batch"]:
    """The indices of the images in the global batch of `step`, in the batch's order."""
    epoch, position = divmod(step, num_images // batch_size)
    return _epoch_order(seed, epoch, num_images)[position * batch_size : (position + 1) * batch_size]


@functools.lru_cache(maxsize=2)  # around the end of an epoch, batches of two epochs are made at the same time
def _epoch_order(seed: int, epoch: int, num_images: int) -> Int[np.ndarray, " images"]:
    return np.random.default_rng((seed, epoch)).permutation(num_images)


def _crop_rng(seed: int, step: int, index: int, view: int) -> np.random.Generator:
    # Philox maps (key, counter) to random bits. The counter's lowest word, 0 here, counts this generator's draws.
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, view, index, step]))


class _Reader:
    """Reads images of a source in threads, many at once, and notes those that cannot be decoded."""

    def __init__(self, source: Source, threads: int):
        self.skipped: dict[str, str] = {}
        self._source, self._threads = source, threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def first(self) -> np.ndarray:
        """The first image that can be decoded. Raises: ImagesError if none can."""
        for index in range(len(self._source)):
            if (found := self._read(index, lambda height, width: 1)) is not None:
                return found[0]
        raise _none_decodable(self.skipped)

    def read_all(self, size: tuple[int, int]) -> tuple[Batch, Bool[np.ndarray, " images"]]:
        """(`read_centers` with a row for each image of the source; whether each image could be decoded)."""
        everything: Batch = {}
        indices = range(len(self._source))
        if (images := self._source.in_memory(size)) is not None:
            # One by one, the 60,000 images of Fashion-MNIST take 0.6 s.
            labels = np.full(len(indices), -1, np.int32) if self._source.labels is None else self._source.labels
            return {"image": images, "index": np.array(indices, np.int32), "label": labels}, np.ones(len(indices), bool)
        decoded = np.zeros(len(indices), bool)
        with tqdm(desc=f"reading {self._source.name}", total=len(indices), unit=" images", delay=1) as progress:
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
        """{"image", "index", "label"} of the images that can be decoded; None if none can."""

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
        return {"image": np.stack(images), "index": np.array(kept, np.int32), "label": np.array(labels, np.int32)}

    def read_crops(
        self,
        indices: Sequence[int],
        crops: Sequence[RandomCrop],
        seed: int,
        step: int,
        black: Sequence[float],
        *,
        at_random: bool,
    ) -> Batch:
        """{"crops", "boxes", "index", "label"}."""

        def row(index: int) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...], int, int] | None:
            def draws() -> Iterator[tuple[RandomCrop, np.random.Generator]]:
                return ((crop, _crop_rng(seed, step, index, view)) for view, crop in enumerate(crops))

            def reduce(height: int, width: int) -> int:
                if any(height * width < 4 * math.prod(crop.size) for crop in crops):
                    return 1  # most photos; what follows takes time
                return reduction(min(crop.shrinks(height, width, rng) for crop, rng in draws()))

            place = _crop_rng(seed, step, index, PLACE) if at_random else None
            if (found := self._read(index, reduce, place)) is None:
                return None
            image, label = found
            made = [random_crop(image, crop, rng, black) for crop, rng in draws()]
            views, boxes = zip(*made, strict=True)
            return views, boxes, index, label

        rows = self._map(lambda index: self.or_another(row, index, seed, step), indices)
        views, boxes, used, labels = zip(*rows, strict=True)
        return {
            "crops": tuple(np.stack(view) for view in zip(*views, strict=True)),
            "boxes": tuple(np.stack(box) for box in zip(*boxes, strict=True)),
            "index": np.array(used, np.int32),
            "label": np.array(labels, np.int32),
        }

    def or_another(self, make: Callable[[int], R | None], index: int, seed: int, step: int) -> R:
        """make(index). If that is None, `make` of another image, which (seed, step, index) alone decide.

        Raises: ImagesError if one image after the other gives None.
        """
        for attempt in range(MAX_REPLACEMENTS):
            if (made := make(index)) is not None:
                return made
            index = int(np.random.default_rng((seed, step, index, attempt)).integers(len(self._source)))
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
                return self._source.read_random(index, place)
            return self._source.read_reduced(index, reduce)
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


def reduction(shrinks: float) -> int:
    """The most that a JPEG's sides may be divided by if the part that is needed of it is shrunk so many times."""
    return max(by for by in REDUCTIONS if by <= max(shrinks, 1))


def _none_decodable(skipped: dict[str, str]) -> ImagesError:
    if not skipped:
        return ImagesError("the data set has no images")
    name, reason = next(iter(skipped.items()))
    return ImagesError(f"none of the {len(skipped)} images tried can be decoded, for example {name}: {reason}")

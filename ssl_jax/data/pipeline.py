"""From a source to batches of uint8 images on the host: order, decoding, crops, reading ahead.

Batch k is a pure function of (seed, k): nothing is remembered from one batch to the next. So a run resumes at any step
without replaying, and every process of a run makes its own rows of the same batches. Grain calls that function in
threads, ahead of the training. OpenCV decodes, and frees Python's lock.
"""

import functools
import itertools
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import cv2
import grain
import numpy as np
from jaxtyping import Bool, Int
from tqdm import tqdm

from ssl_jax.data.crop import RandomCrop, center_crop, random_crop
from ssl_jax.data.sources import Source, UndecodableImage

# Images are decoded in parallel already; OpenCV's own threads within each call would only get in the way.
cv2.setNumThreads(1)

Batch = dict[str, Any]
R = TypeVar("R")
THREADS, PREFETCH = 8, 2
READ_BATCH = 512  # images read at a time into memory
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
    threads: int = THREADS,
    prefetch: int = PREFETCH,
) -> "Batches":
    """Endless batches for training. Each epoch has another order; images at its end that fill no batch are left out.

    A set that takes no more than `memory_bytes` when decoded is kept in memory, each image as `center_crop` gives it.
    The device makes the views. A batch is
    {"image": uint8 [rows, height, width, channels], "index": int32 [rows], "label": int32 [rows]}.

    A larger set is decoded anew for each batch, and the views are cropped here, from the whole images. A batch is
    {"crops": (uint8 [rows, *size, channels] for each view), "boxes": (float32 [rows, 4] for each view, see
    `random_crop`), "index", "label"}.

    "index" is the image's index in `source`; "label" is -1 for an image without one. The order covers all images of the
    source. Another image replaces one that cannot be decoded, in its row alone. So an image that one process, or one
    start of a run, cannot read moves no other image.

    Args:
      seed: of order and crops, >= 0.
      batch_size: images a step over all processes.
      image_size: (height, width) of images in memory.
      crops: one for each view.
      start_step: the step of the first batch.
      process_index, process_count: this process makes only its share of each batch's rows. It reads no other images,
        unless the set is kept in memory: then every process holds the whole set.
      memory_bytes: 0 to keep no set in memory.
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
    channels = reader.channels()
    if num_images < batch_size:
        raise ImagesError(
            f"{source.name} has {num_images} images, fewer than one batch; use a batch size of {num_images} or less"
        )
    if num_images * image_size[0] * image_size[1] * channels <= memory_bytes:
        everything, decoded = reader.read_all(image_size)

        def make(step: int, rows: np.ndarray) -> Batch:
            used = rows.copy()
            for k in np.flatnonzero(~decoded[rows]):
                used[k] = reader.or_another(lambda index: index if decoded[index] else None, int(rows[k]), seed, step)
            return {name: values[used] for name, values in everything.items()}
    else:

        def make(step: int, rows: np.ndarray) -> Batch:
            return reader.read_crops(rows.tolist(), crops, seed, step)

    def batch(step: int) -> Batch:
        return make(step, batch_rows(step, seed=seed, num_images=num_images, batch_size=batch_size)[share])

    return Batches(batch, range(start_step, sys.maxsize), reader.skipped, prefetch)


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
        dataset = grain.MapDataset.range(steps.start, steps.stop).map(batch)
        options = grain.ReadOptions(num_threads=prefetch, prefetch_buffer_size=prefetch)
        self._batches: Any = iter(dataset.to_iter_dataset(options))  # skips None

    def __next__(self) -> Batch:
        try:
            batch = next(self._batches)
        except StopIteration:
            if not self._found_any:
                raise _none_decodable(self.skipped) from None
            raise
        self._found_any = True
        return batch


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

    def channels(self) -> int:
        """The channels of the first image that can be decoded. Raises: ImagesError if none can."""
        for index in range(len(self._source)):
            if (found := self._read(index)) is not None:
                return found[0].shape[-1]
        raise _none_decodable(self.skipped)

    def read_all(self, size: tuple[int, int]) -> tuple[Batch, Bool[np.ndarray, " images"]]:
        """(`read_centers` with a row for each image of the source; whether each image could be decoded)."""
        everything: Batch = {}
        indices = range(len(self._source))
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
            if (found := self._read(index)) is None:
                return None
            image, label = found
            return center_crop(image, size, share), index, label

        rows = [row for row in self._map(row, indices) if row is not None]
        if not rows:
            return None
        images, kept, labels = zip(*rows, strict=True)
        return {"image": np.stack(images), "index": np.array(kept, np.int32), "label": np.array(labels, np.int32)}

    def read_crops(self, indices: Sequence[int], crops: Sequence[RandomCrop], seed: int, step: int) -> Batch:
        """{"crops", "boxes", "index", "label"}."""

        def row(index: int) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...], int, int] | None:
            if (found := self._read(index)) is None:
                return None
            image, label = found
            rngs = (_crop_rng(seed, step, index, view) for view in range(len(crops)))
            made = [random_crop(image, crop, rng) for crop, rng in zip(crops, rngs, strict=True)]
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
            f"{MAX_REPLACEMENTS} images drawn one after the other cannot be decoded; one of them, {name}: {reason}"
        )

    def _read(self, index: int) -> tuple[np.ndarray, int] | None:
        """(image, label); None if it cannot be decoded."""
        try:
            return self._source.read(index)
        except UndecodableImage as error:
            if error.name not in self.skipped:
                self.skipped[error.name] = error.reason
                logging.warning("skipped %s", error)
            return None

    def _map(self, work: Callable[[int], R], indices: Sequence[int]) -> list[R]:
        """[work(index) for index in indices]. Each thread does a part of them."""
        parts = [part.tolist() for part in np.array_split(indices, self._threads)]
        return list(itertools.chain.from_iterable(self._pool.map(lambda part: [work(index) for index in part], parts)))


def _none_decodable(skipped: dict[str, str]) -> ImagesError:
    if not skipped:
        return ImagesError("the data set has no images")
    name, reason = next(iter(skipped.items()))
    return ImagesError(f"none of the {len(skipped)} images that were tried can be decoded; for one, {name}: {reason}")

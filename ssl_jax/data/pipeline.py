"""From a source to batches of images on the host: order, decoding, crops, reading ahead.

Batch k is a pure function of (seed, k): nothing is remembered from one batch to the next. So a run resumes at any step
without replaying, and every process of a run makes its own rows of the same batches. Threads call that function ahead
of the training. data/reader.py reads the images of one batch.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Int64

from ssl_jax.data import indices
from ssl_jax.data.crop import RandomCrop
from ssl_jax.data.order import epoch_order
from ssl_jax.data.reader import Batch, ImagesError, Reader, none_decodable
from ssl_jax.data.sources import Source
from ssl_jax.data.threads import in_order

PREFETCH = 2
# Evaluation keeps 224/256 of the shorter side, as is usual; below 96 pixels it keeps all of it.
EVAL_SHARE, EVAL_SHARE_FROM = 224 / 256, 96


def train_batches(
    source: Source,
    *,
    seed: int,
    batch_size: int,
    image_size: tuple[int, int],
    crops: Sequence[RandomCrop] | Callable[[int], Sequence[RandomCrop]],
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    memory_bytes: int = 2**31,
    at_random: bool = True,
    black: Sequence[float] = (0.0,),
    threads: int = 0,
    prefetch: int = PREFETCH,
) -> "Batches":
    """Endless batches for training. Each epoch has another order; images at its end that fill no batch are left out.

    A set that takes no more than `memory_bytes` when decoded is kept in memory, each image as `center_crop` gives it.
    The device makes the views. A batch is
    {"image": [rows, height, width, channels], "index": int32 [rows], "label": int32 [rows]}; of a set of more than 2^31
    images "index" is int32 [rows, 2], see data/indices.py.

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
      crops: one for each view; or a function of the step, counted from 0, that gives these.
      start_step: the step of the first batch.
      process_index, process_count: this process makes only its share of each batch's rows. It reads no other images,
        unless the set is kept in memory: then every process holds the whole set.
      memory_bytes: 0 to keep no set in memory.
      at_random: whether images that are windows of larger ones are read at random places, see `Source.read_random`.
        Then no set of such images is kept in memory.
      black: the value that crops with padding are padded with, of each channel or one for all.
      threads: threads that decode; 0: `default_threads()`.
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
    reader, num_images = Reader(source, threads), len(source)
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
            of_step = crops(step) if callable(crops) else crops
            return reader.read_crops(rows.tolist(), of_step, seed, step, black, like=first, at_random=at_random)

    def batch(step: int) -> Batch:
        made = make(step, batch_rows(step, seed=seed, num_images=num_images, batch_size=batch_size)[share])
        return made | {"index": indices.for_device(made["index"], num_images)}

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
    threads: int = 0,
    prefetch: int = PREFETCH,
) -> "Batches":
    """Every image that can be decoded, once, in order, in batches {"image", "index", "label"} as of `train_batches`,
    but with "index" int64 [rows].

    A batch has `batch_size` rows, or fewer at the end and where images cannot be decoded. The images are as
    `center_crop` gives them, with a share of 224/256 from 96 pixels on.

    Raises: ImagesError, at the end, if no image could be decoded.
    """
    reader = Reader(source, threads)
    share = EVAL_SHARE if min(image_size) >= EVAL_SHARE_FROM else 1.0

    def batch(step: int) -> Batch | None:
        rows = range(len(source))[step * batch_size : (step + 1) * batch_size]
        return reader.read_centers(rows, image_size, share)

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
            raise none_decodable(self.skipped)
        raise StopIteration


def batch_rows(step: int, *, seed: int, num_images: int, batch_size: int) -> Int64[np.ndarray, " batch"]:
    """The indices of the images in the global batch of `step`, in the batch's order."""
    epoch, number = divmod(step, num_images // batch_size)
    positions = np.arange(number * batch_size, (number + 1) * batch_size, dtype=np.int64)
    return epoch_order(positions, seed=seed, epoch=epoch, num_images=num_images)

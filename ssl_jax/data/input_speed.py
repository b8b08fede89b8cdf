"""How fast images become batches of crops on this machine, stage by stage, and what limits it."""

import contextlib
import cProfile
import dataclasses
import itertools
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from ssl_jax.data.crop import RandomCrop, random_crop
from ssl_jax.data.formats import UndecodableImage
from ssl_jax.data.pipeline import batch_rows, keeps_in_memory
from ssl_jax.data.reader import Reader, crop_rng, reduction_for
from ssl_jax.data.sources import Source
from ssl_jax.data.threads import usable_cores

READ, DECODE, CROP = "read", "decode", "crop and resize"
BATCH = 64  # images, of which the threads make a batch
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)  # of the crops: torchvision's
STAGES_SHARE, LOCK_SHARE = 0.3, 0.2  # of the time; the rest is for whole batches
LONG = 1e-5  # seconds of a call
CALLS, TRIES = 5000, 5  # for measuring the profiler
SEED = 0
MOST_READ = 2**20  # different images
BUSY, LOCKED = 0.75, 0.7  # shares of the cores, of the lock, from which on these limit
WAITS = 0.5  # beside the time of an image: a wait for its file of as much limits
MEMORY = 1.5  # an image that takes so many times the processor time among others waits for memory


@dataclasses.dataclass(frozen=True)
class Stage:
    """What one image takes in one thread, in the mean: milliseconds of a processor, and milliseconds of the clock.

    In the stage `READ` files are read for the first time in this process; the system may have them in memory.
    """

    name: str
    processor_ms: float
    clock_ms: float


@dataclasses.dataclass(frozen=True)
class Threads:
    """Whole batches, made by `threads` threads: images/s, and the number of cores that were busy for it."""

    threads: int
    images_per_second: float
    busy_cores: float

    @property
    def processor_ms(self) -> float:
        """Of an image."""
        return 1e3 * self.busy_cores / self.images_per_second


@dataclasses.dataclass(frozen=True)
class InputSpeed:
    """What was measured.

    Attributes:
      images: in the set.
      crops: of each image, and `size`: (height, width) of each.
      decoded: whether images are decoded. If not, they are arrays.
      kept: whether training with images of `size` keeps the set in memory and reads nothing later.
      stages: of one image; without `READ` where it cannot be told from decoding.
      batches: for each number of threads.
      lock_ms: for how long an image holds Python's lock. An estimate, see `_lock_ms`.
      cores: that this process may use.
      skipped: {name: reason} of images that cannot be decoded.
    """

    images: int
    crops: int
    size: tuple[int, int]
    decoded: bool
    kept: bool
    stages: tuple[Stage, ...]
    batches: tuple[Threads, ...]
    lock_ms: float
    cores: int
    skipped: dict[str, str]

    @property
    def best(self) -> Threads:
        """The number of threads that gives the most images/s."""
        return max(self.batches, key=lambda made: made.images_per_second)

    @property
    def limit(self) -> str:
        """What limits the images/s, in a sentence."""
        best, single = self.best, self.batches[0]
        usable = min(best.threads, self.cores)
        locked = best.images_per_second * self.lock_ms / 1e3
        times = best.processor_ms / single.processor_ms
        most = max(self.stages, key=lambda stage: stage.processor_ms)
        share = most.processor_ms / sum(stage.processor_ms for stage in self.stages)
        first, crop = self.stages[0], self.stages[-1]
        # A busy machine makes every stage wait, the disk only the first.
        waits = first.clock_ms - first.processor_ms * crop.clock_ms / crop.processor_ms
        if best.busy_cores >= BUSY * usable and times > MEMORY:
            return f"memory: with {best.threads} threads an image takes {times:.1f} times the processor time"
        if best.busy_cores >= BUSY * usable:
            return f"the processor: {100 * share:.0f} % of an image's time there is for this stage: {most.name}"
        if locked >= LOCKED:
            return f"Python's lock: it is held {100 * min(locked, 1):.0f} % of the time, so start more processes"
        if waits > WAITS * best.processor_ms / best.threads:
            return f"the disk: one thread waits {waits:.2f} ms for an image's file, so try more threads"
        busy = f"{best.busy_cores:.1f} of {usable} {'core was' if usable == 1 else 'cores were'} busy"
        return f"other programs on this machine, or waiting for files: {busy}"

    def expected(self, cores: int) -> float:
        """Images/s with so many cores like these, if the disk is fast enough: no more than Python's lock allows."""
        return 1e3 / max(self.batches[0].processor_ms / cores, self.lock_ms)


def measure_input(
    source: Source,
    *,
    image_size: tuple[int, int] = (224, 224),
    views: int = 2,
    threads: Sequence[int] = (),
    seconds: float = 10.0,
    memory_bytes: int = 2**31,
    progress: bool = False,
) -> InputSpeed:
    """Reads, decodes and crops images as training does, for about so many seconds.

    Args:
      image_size: (height, width) of the crops.
      views: crops of each image, at least 1.
      threads: numbers of threads to make batches with; (): 1, 2, 4, ... and the usable cores.
      memory_bytes: a set that takes no more is kept in memory by training, as `config.data.memory_bytes` says.
      progress: whether to show a bar.
    Raises: ImagesError if no image can be decoded; ValueError for numbers out of range.
    """
    counts = tuple(sorted(set(threads))) or _powers(usable_cores())
    if views < 1 or min(counts) < 1 or min(image_size) < 1 or not seconds > 0:
        raise ValueError(
            f"views, threads, image_size and seconds must be above 0, got {views}, {list(counts)}, "
            f"{list(image_size)}, {seconds:g}"
        )
    crops = [RandomCrop(image_size, AREA, ASPECT)] * views
    reader = Reader(source, 1)
    like = reader.first()
    if like.shape[-1] in (1, 3):  # of photos, some may be gray
        reader = Reader(source := source.with_channels(like.shape[-1]), 1)
    some = min(len(source), MOST_READ)
    order = itertools.cycle(batch_rows(0, seed=SEED, num_images=len(source), batch_size=some).tolist())
    with tqdm(desc="measuring", total=2 + len(counts), disable=not progress, leave=False) as bar:
        stages = _stages(source, crops, order, STAGES_SHARE * seconds)
        bar.update()
        lock_ms = _lock_ms(source, crops, order, LOCK_SHARE * seconds)
        bar.update()
        batches: list[Threads] = []
        each = (1 - STAGES_SHARE - LOCK_SHARE) * seconds / len(counts)
        for count in counts:
            several = Reader(source, count)
            batches.append(Threads(count, *_threads(several, crops, like, order, each)))
            reader.skipped.update(several.skipped)
            bar.update()
    pixel_bytes = like.shape[-1] * like.itemsize
    return InputSpeed(
        images=len(source),
        crops=views,
        size=image_size,
        decoded=source.encoded(0) is not None or source.in_memory(like.shape[:2]) is None,
        kept=keeps_in_memory(
            len(source), image_size, pixel_bytes, memory_bytes=memory_bytes, at_random=bool(source.random)
        ),
        stages=stages,
        batches=tuple(batches),
        lock_ms=min(lock_ms, batches[0].processor_ms),
        cores=usable_cores(),
        skipped=reader.skipped,
    )


def _powers(cores: int) -> tuple[int, ...]:
    return (*(2**k for k in range(int(math.log2(cores)) + 1) if 2**k < cores), cores)


def _stages(source: Source, crops: Sequence[RandomCrop], order: "itertools.cycle[int]", seconds: float):
    """The stages of one image after the other, in this thread."""
    marks: list[np.ndarray] = []  # [processor time, clock] at four moments of each image
    has_bytes, end = True, time.perf_counter() + seconds
    while not marks or time.perf_counter() < end:
        index = next(order)
        step = len(marks)
        try:
            times = [_now()]
            has_bytes = source.encoded(index) is not None
            times.append(_now())
            image = _decoded(source, crops, step, index)
            times.append(_now())
        except UndecodableImage:
            continue  # `Reader.first` found one that is not
        _crop(image, crops, step, index)
        marks.append(np.array([*times, _now()]))
    took = 1e3 * np.diff(marks, axis=1).mean(axis=0)
    read, decode, crop = (Stage(name, *map(float, ms)) for name, ms in zip((READ, DECODE, CROP), took, strict=True))
    if not has_bytes:
        return dataclasses.replace(decode, name=f"{READ} and {DECODE}"), crop
    # Decoding has read the file once more, now from the system's memory.
    alone = max(decode.processor_ms - read.processor_ms, 0.0), max(decode.clock_ms - read.processor_ms, 0.0)
    return read, Stage(DECODE, *alone), crop


def _decoded(source: Source, crops: Sequence[RandomCrop], step: int, index: int) -> np.ndarray:
    if source.random:
        return source.read_random(index, crop_rng(SEED, step, index, len(crops)))[0]
    return source.read_reduced(index, reduction_for(crops, SEED, step, index))[0]


def _crop(image: np.ndarray, crops: Sequence[RandomCrop], step: int, index: int) -> None:
    for view, crop in enumerate(crops):
        random_crop(image, crop, crop_rng(SEED, step, index, view))


def _now() -> tuple[float, float]:
    return time.thread_time(), time.perf_counter()


def _threads(
    reader: Reader, crops: Sequence[RandomCrop], like: np.ndarray, order: "itertools.cycle[int]", seconds: float
) -> tuple[float, float]:
    """(images/s, busy cores) of whole batches."""

    def make(step: int) -> None:
        indices = list(itertools.islice(order, BATCH))
        reader.read_crops(indices, crops, SEED, step, (0.0,), like=like, at_random=reader.source.random)

    make(0)  # starts the threads
    begun, used, batches = time.perf_counter(), time.process_time(), 0
    while not batches or time.perf_counter() < begun + seconds:
        batches += 1
        make(batches)
    clock = time.perf_counter() - begun
    return BATCH * batches / clock, (time.process_time() - used) / clock


def _lock_ms(source: Source, crops: Sequence[RandomCrop], order: "itertools.cycle[int]", seconds: float) -> float:
    """Milliseconds that an image holds Python's lock: all but the C functions that take long.

    What works on pixels frees the lock, and takes long. NumPy's operators (`a + b`) free it, too, but are counted as
    Python, since the profiler does not see them. The profiler's own time is subtracted.
    """
    profile, images = cProfile.Profile(), 0
    used, begun = time.thread_time(), time.perf_counter()
    while not images or time.perf_counter() < begun + seconds:
        index = next(order)
        profile.enable()
        try:
            image = _decoded(source, crops, images, index)
            _crop(image, crops, images, index)
        except UndecodableImage:
            continue
        finally:
            profile.disable()
        images += 1
    busy = (time.thread_time() - used) / (time.perf_counter() - begun)  # the rest went to other programs
    entries = [entry for entry in profile.getstats() if not _frees_lock(entry)]
    calls = sum(entry.callcount for entry in entries)
    held = sum(entry.inlinetime for entry in entries) * busy - calls * _profiled_call()
    return 1e3 * max(held, 0.0) / images


def _frees_lock(entry: Any) -> bool:
    return isinstance(entry.code, str) and entry.inlinetime > LONG * entry.callcount


def _profiled_call() -> float:
    """Seconds that the profiler adds to a call."""

    def seconds(profile: bool) -> float:
        with cProfile.Profile() if profile else contextlib.nullcontext():
            begun = time.thread_time()
            for _ in range(CALLS):
                abs(0)
            return time.thread_time() - begun

    plain, profiled = (min(seconds(profile) for _ in range(TRIES)) for profile in (False, True))
    return max(profiled - plain, 0.0) / CALLS

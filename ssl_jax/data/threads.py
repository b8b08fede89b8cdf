"""Work in threads: results in order, and things that several threads ask for."""

import collections
import os
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

R = TypeVar("R")
Key = TypeVar("Key", bound=Hashable)
LEAST_THREADS = 4  # while one waits for the disk, another can work

_moving = threading.Lock()


def usable_cores() -> int:
    """Of those that the machine has, the processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_threads() -> int:
    """One for each usable core, and at least LEAST_THREADS."""
    return max(usable_cores(), LEAST_THREADS)


def read_at(file: int, size: int, position: int) -> bytes:
    """Bytes of an open file, given its descriptor. Threads may share the file: its position stays as it is."""
    if hasattr(os, "pread"):
        return os.pread(file, size, position)
    with _moving:  # Windows
        before = os.lseek(file, 0, os.SEEK_CUR)
        os.lseek(file, position, os.SEEK_SET)
        found = os.read(file, size)
        os.lseek(file, before, os.SEEK_SET)
    return found


def in_order(
    pool: ThreadPoolExecutor, work: Callable[[int], R], indices: Sequence[int], ahead: int
) -> Iterator[tuple[int, R]]:
    """(index, work(index)) of each, in order. No more than `ahead` are begun before the first of them is taken."""
    waiting: collections.deque[tuple[int, Future[R]]] = collections.deque()
    for index in indices:
        waiting.append((index, pool.submit(work, index)))
        if len(waiting) >= ahead:
            first, future = waiting.popleft()
            yield first, future.result()
    for first, future in waiting:
        yield first, future.result()


def one_ahead(items: Iterable[R]) -> Iterator[R]:
    """The items. Each is made in a thread while the one before it is used."""
    iterator, end = iter(items), object()

    def make(made: Future[Any]) -> None:
        try:
            made.set_result(next(iterator, end))
        except BaseException as error:  # raised again where the item is asked for
            made.set_exception(error)

    def begin() -> Future[Any]:
        made: Future[Any] = Future()
        # A daemon, so that a program that is stopped does not wait for what may take an hour.
        threading.Thread(target=make, args=(made,), daemon=True, name="one ahead").start()
        return made

    following = begin()
    while (item := following.result()) is not end:
        following = begin()
        yield item


class LastUsed(Generic[Key, R]):
    """What was asked for last, kept. Several threads may ask for one thing; it is made once.

    Args:
      make: key -> what is kept.
      num_bytes: of what is kept. most_bytes: of all together; the one used longest ago goes first, and one is always
        kept.
      most: things kept at a time; 0: any number.
    """

    def __init__(self, make: Callable[[Key], R], num_bytes: Callable[[R], int], most_bytes: int, most: int = 0):
        self._make, self._num_bytes, self._most_bytes, self._most = make, num_bytes, most_bytes, most
        self._lock = threading.Lock()
        self._kept: collections.OrderedDict[Key, R] = collections.OrderedDict()
        self._making: dict[Key, threading.Lock] = {}

    def __call__(self, key: Key) -> R:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            own = self._making.setdefault(key, threading.Lock())
        with own:
            with self._lock:
                if key in self._kept:
                    return self._kept[key]
            made = self._make(key)
            with self._lock:
                self._kept[key] = made
                self._making.pop(key, None)
                while len(self._kept) > 1 and self._too_many():
                    self._kept.popitem(last=False)
            return made

    def _too_many(self) -> bool:
        held = sum(self._num_bytes(one) for one in self._kept.values())
        return held > self._most_bytes or 0 < self._most < len(self._kept)

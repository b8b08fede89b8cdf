"""A trace of some steps, for xprof."""

import contextlib
import dataclasses
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import jax

from ssl_jax import dist, paths
from ssl_jax.config import ConfigError
from ssl_jax.paths import AnyPath, StorePath
from ssl_jax.stores import StoreError


@dataclasses.dataclass(frozen=True)
class Profile:
    """The steps from `start` to `stop`, both with them, counted from 1."""

    start: int
    stop: int


def parse(text: str) -> Profile | None:
    """Of --profile: "START:STOP"; None for "". Raises: ConfigError."""
    if not text:
        return None
    start, _, stop = text.partition(":")
    if not (start.isdecimal() and stop.isdecimal() and 1 <= int(start) <= int(stop)):
        raise ConfigError(f"--profile={text}: give START:STOP, two steps from 1 on, as --profile=20:25")
    return Profile(int(start), int(stop))


def check(profile: Profile, first: int, last: int) -> None:
    """Raises: ConfigError if this start of the run, which does the steps from `first` to `last`, does not do them."""
    if not first <= profile.start <= profile.stop <= last:
        done = f"does steps {first} to {last}" if first <= last else "has no steps left"
        raise ConfigError(f"--profile={profile.start}:{profile.stop}: this start of the run {done}; give some of these")


def traced(
    steps: Iterable[int], profile: Profile | None, directory: AnyPath, settle: Callable[[], object]
) -> Iterator[int]:
    """The numbers of `steps`. Those of `profile` are traced, in the first process, and written to `directory`.

    settle: waits until the devices have done all steps that they were given.
    """
    with contextlib.ExitStack() as trace:
        for step in steps:
            if profile and dist.is_first() and step == profile.start:
                settle()
                trace.enter_context(_tracing(profile, directory))
            yield step
            if profile and step == profile.stop:
                settle()
                trace.close()


@contextlib.contextmanager
def _tracing(profile: Profile, directory: AnyPath) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        on_disk = str(directory)
        if isinstance(directory, StorePath):  # JAX writes to disks
            on_disk = stack.enter_context(tempfile.TemporaryDirectory(prefix="ssl_jax-"))
        jax.profiler.start_trace(on_disk)
        try:
            yield
        finally:
            try:
                jax.profiler.stop_trace()
                if isinstance(directory, StorePath):
                    paths.upload_folder(Path(on_disk), directory)
                print(
                    f"steps {profile.start} to {profile.stop} are profiled in {directory}; to see them: "
                    f"pip install xprof; xprof --logdir {directory} --port 6006, then open http://localhost:6006",
                    flush=True,
                )
            except (RuntimeError, StoreError) as error:  # of a full disk, say. The run itself has lost nothing
                told = "the profile could not be written to %s (%s); the run goes on without it"
                logging.warning(told, directory, error)

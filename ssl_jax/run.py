"""A run's workdir and its course: claiming and describing the workdir, progress, and stopping when asked."""

import contextlib
import fcntl
import json
import logging
import os
import platform
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import jax
from ml_collections import ConfigDict

from ssl_jax import config as configs
from ssl_jax import files, parallel
from ssl_jax.data.sources import Source
from ssl_jax.evaluation import alarms
from ssl_jax.metrics import MetricsWriter
from ssl_jax.step import is_logged

PACKAGES = ("ssl_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "opencv-python-headless")

R = TypeVar("R")

# Share of a run after which a collapsed network is warned of: before, all are near chance.
COLLAPSE_FROM = 0.1


def claim(workdir: Path, config: ConfigDict) -> None:
    """Makes `workdir` this config's.

    Raises: ConfigError, with the differences, if it is another's, and if the processes of this run do not share it.
    """
    path = workdir / "config.json"
    if path.exists():
        differences = configs.differences(_completed(_load(path, configs.loads)), _completed(config))
        if differences:
            listed = "\n  ".join(differences)
            raise configs.ConfigError(
                f"{workdir} holds a run with another config (there -> here):\n  {listed}\n"
                "use another --workdir, or the same config to go on with that run"
            )
    parallel.wait_for_all("workdir read")
    if parallel.is_first():
        workdir.mkdir(parents=True, exist_ok=True)
        write(path, configs.dumps(config))
    parallel.wait_for_all("workdir claimed")
    if not path.exists():
        raise configs.ConfigError(
            f"process 0 has made {path}, and process {jax.process_index()} does not see it; --workdir must be on a "
            "file system that all machines share"
        )


@contextlib.contextmanager
def alone(workdir: Path) -> Iterator[None]:
    """Within it no other start trains in `workdir`: two would each undo what the other writes.

    To be entered by all processes of a run. Where the file system has no locks nothing is checked.
    Raises: ConfigError, in every process, where another start is in it.
    """
    with contextlib.ExitStack() as stack:
        holder = ""
        if parallel.is_first():
            lock = stack.enter_context((workdir / ".lock").open("a+"))  # freed when it is closed, by a kill too
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                lock.truncate(0)
                print(f"process {os.getpid()} on {platform.node()}", file=lock, flush=True)
            except BlockingIOError:
                lock.seek(0)
                holder = lock.read().strip()
            except OSError as error:
                logging.warning("%s cannot be locked (%s): start no second run in it", workdir, error.strerror)
        if holder := parallel.gather_facts({"holder": holder})[0]["holder"]:
            raise configs.ConfigError(
                f"another start is training in {workdir}, {holder}; wait until it has ended, or use another --workdir"
            )
        yield


def _completed(config: ConfigDict) -> ConfigDict:
    """With the keys that came to the base config after this one was written, at their defaults."""
    return ConfigDict(configs.plain(configs.base_config()) | configs.plain(config))


def read_config(workdir: Path) -> ConfigDict:
    """Of the run in `workdir`. Raises: ConfigError where there is none."""
    path = workdir / "config.json"
    if not path.exists():
        raise configs.ConfigError(f"{workdir} holds no run (there is no {path}); make one with ssl_jax train")
    return _completed(_load(path, configs.loads))


def source_facts(source: Source, *, given: bool) -> dict[str, Any]:
    """What run.json says of the images that a run is trained on.

    name, kind, digest: of the source; its kind is its class. given: whether a program gave it, so that the config does
    not say which images they are.
    """
    return {"name": source.name, "kind": type(source).__name__, "digest": source.digest(), "given": given}


def trained_on(workdir: Path) -> dict[str, Any]:
    """`source_facts` of the run in `workdir`; {} where run.json does not say, as of earlier versions."""
    path = workdir / "run.json"
    return _load(path, lambda text: dict(json.loads(text).get("source", {}))) if path.exists() else {}


def check_images(workdir: Path, *, num_images: int, images_digest: str) -> None:
    """Raises: ConfigError if the run in `workdir` has checkpoints and began on other images, as its run.json says."""
    path = workdir / "run.json"
    if not path.exists() or not any((workdir / "checkpoints").glob("[0-9]*")):
        return
    begun = _load(path, lambda text: dict(json.loads(text)))
    source = begun.get("source", {})
    digest = source.get("digest", begun.get("images_digest", images_digest))
    if (then := begun.get("num_images", num_images)) != num_images:
        differs = f"{num_images:,} images, {then:,} when the run began"
    elif digest != images_digest:
        differs = f"{num_images:,} images as when the run began, but not the same ones, or in another order"
    else:
        return
    if source.get("given"):
        raise configs.ConfigError(
            f"the run in {workdir} began on images that a program gave, {source['kind']} {source['name']!r}, and these "
            f"are others: {differs}\ngive the same again, train(config, workdir, source=...), or use another workdir"
        )
    raise configs.ConfigError(
        f"the data set has changed, and with it the order of its images, since the run in {workdir} began: {differs}\n"
        "restore the data set as it was, or begin anew in another --workdir"
    )


def check_measured(workdir: Path, found: Sequence[Source], data: str) -> None:
    """Raises: ConfigError where run.json names images that the run was trained on, and they are none of `found`, which
    are those of its config, whole or their training part. `data`: what the config calls them."""
    trained = trained_on(workdir)
    if not trained or trained["digest"] in {source.digest() for source in found}:
        return
    if trained["given"]:
        raise configs.ConfigError(
            f"the run in {workdir} was trained on images that a program gave, {trained['kind']} {trained['name']!r}, "
            "and its config does not say which they are; say what to measure on: --data NAME_OR_FOLDER, or "
            "evaluate(workdir, pair=(training, test))"
        )
    raise configs.ConfigError(
        f"the images of {trained['name']} have changed since the run in {workdir} was trained on them; restore them, "
        f"or measure on what is there now: --data {data}"
    )


def _load(path: Path, parse: Callable[[str], R]) -> R:
    try:
        return parse(path.read_text())
    except (ValueError, TypeError, RecursionError) as error:
        raise configs.ConfigError(
            f"{path} is damaged ({error}), so what ran there cannot be told; put back a copy of it, or move it away: "
            "ssl_jax train with the config of that run writes it again and goes on"
        ) from error


def write(path: Path, text: str) -> None:
    """Writes the file whole or not at all, see `files.replacing`."""
    with files.replacing(path) as file:
        file.write(text.encode())


def check_processes(config: ConfigDict, workdir: Path) -> None:
    """Raises: ProcessError where the processes of this run differ in what they run."""
    devices = f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}"
    settings = {f"config.{key}": value for key, value in configs.flatten(config).items()}
    where = {"devices of a process": devices, "commit": commit(), "workdir": str(workdir)}
    parallel.check_same(where | versions() | settings)


def versions() -> dict[str, str | None]:
    """Of Python and of the packages that a run's numbers depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def describe(workdir: Path, *, skipped: Mapping[str, str], **facts: Any) -> None:
    """Writes run.json: packages, commit, machine, the images that any process skipped, and the given facts.

    To be called by all processes of a run.
    """
    device = jax.devices()[0]
    everywhere = parallel.gather_facts(dict(skipped))
    text = json.dumps(
        {
            "versions": versions(),
            "commit": commit(),
            "devices": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
            "processes": jax.process_count(),
            "skipped": {name: reason for found in everywhere for name, reason in found.items()},
            **facts,
        },
        indent=2,
    )
    if parallel.is_first():
        write(workdir / "run.json", text)


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None  # ssl_jax itself, run from a clone


def commit() -> str | None:
    """Of the clone that the code runs from, with a + where files differ from it, or of git's archive; else None."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        archived = Path(__file__).with_name("commit.txt").read_text().strip()  # filled in by git archive
        return archived[:12] if archived.isalnum() else None


class Termination:
    """Within its context, SIGTERM sets `requested` instead of ending the program."""

    requested = False

    def __enter__(self):
        self._previous = signal.signal(signal.SIGTERM, self._request)
        return self

    def _request(self, signum, frame):
        self.requested = True
        # Not print: it may have been interrupted within itself.
        os.write(2, b"SIGTERM: the state is saved after one of the next steps\n")

    def __exit__(self, *exception):
        signal.signal(signal.SIGTERM, self._previous)


class Timer:
    """Whether so many seconds have passed since it was made or restarted; with 0 seconds never."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self.restart()

    def restart(self) -> None:
        self._start = time.monotonic()

    def passed(self) -> bool:
        return 0 < self._seconds <= time.monotonic() - self._start


class Progress:
    """Fetches the metrics of logged steps when the device is a step further on, writes and prints them.

    Args:
      writer: None in a process that leaves writing and printing to another.
      schedule: step -> learning rate.
      chance_level: the loss of a network that has learnt nothing, or None.
      start, steps: the run goes from step start + 1 to `steps`.
      stop_after_skipped: so many skipped updates in a row end the run.
    """

    def __init__(
        self,
        writer: MetricsWriter | None,
        schedule: Callable[[int], float],
        *,
        chance_level: float | None,
        batch_size: int,
        log_every: int,
        start: int,
        steps: int,
        stop_after_skipped: int,
    ):
        self._writer, self._schedule, self._chance_level = writer, schedule, chance_level
        self._batch_size, self._log_every, self._steps = batch_size, log_every, steps
        self._stop_after_skipped = stop_after_skipped
        self._pending: tuple[int, dict[str, Any]] | None = None
        self._warned = False
        self._alarms: set[str] = set()
        self._losses: list[float] = []  # of logged steps, from COLLAPSE_FROM on
        # Of the current interval between logged steps, without pauses; it begins when the first step is compiled.
        self._interval_start_step: int | None = None
        self._interval_start, self._waited, self._first = 0.0, 0.0, start + 1

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begun

    @contextlib.contextmanager
    def paused(self, state: Any) -> Iterator[None]:
        """The time within counts for no step. `state`: of the last step, whose computing counts and is waited for."""
        jax.block_until_ready(state)
        begun = time.perf_counter()
        yield
        self._interval_start += time.perf_counter() - begun

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """`metrics`: device arrays of the step just dispatched, not waited for."""
        self.flush()
        if is_logged(step, self._log_every):
            self._pending = (step, dict(metrics))
        if step == self._first:
            jax.block_until_ready(metrics)  # compiled: the clock starts here
            self._restart(step)

    def add(self, **scalars: float) -> None:
        """More metrics of the logged step that was last dispatched."""
        assert self._pending is not None
        self._pending[1].update(scalars)

    def flush(self) -> None:
        """Writes what is pending. Raises: Diverged after too many skipped updates in a row."""
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        scalars = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if self._chance_level is not None:
            scalars["chance_level"] = self._chance_level
        scalars["lr"] = float(self._schedule(step - 1))
        seconds = time.perf_counter() - self._interval_start
        if self._interval_start_step is not None and step > self._interval_start_step:
            scalars["images_per_second"] = (step - self._interval_start_step) * self._batch_size / seconds
            scalars["data_wait"] = min(self._waited / seconds, 1.0)
            self._restart(step)
        in_a_row = scalars.pop("skipped_in_a_row")
        self._warn_of_waiting(scalars.get("data_wait", 0.0))
        if self._writer:
            self._writer.write(step, scalars)
            print(self._line(step, scalars), flush=True)
            if step > COLLAPSE_FROM * self._steps:
                self._warn_of_collapse(step, scalars)
        if in_a_row >= self._stop_after_skipped:
            raise Diverged(
                f"the loss or its gradient was not finite in the last {int(in_a_row)} steps up to step {step}, and "
                f"none of them was applied. Look at loss and grad_norm in metrics.jsonl before that; lower "
                f"config.optimizer.lr (now {scalars['lr']:.3g}) or lengthen config.optimizer.warmup_steps"
            )

    def _restart(self, step: int) -> None:
        self._interval_start_step, self._interval_start, self._waited = step, time.perf_counter(), 0.0

    def _line(self, step: int, scalars: Mapping[str, float]) -> str:
        chance = f" (chance {self._chance_level:.3f})" if self._chance_level is not None else ""
        parts = [f"step {step:>{len(str(self._steps))}}/{self._steps}", f"loss {scalars['loss']:.4f}{chance}"]
        if "knn_top1" in scalars:
            parts.append(f"kNN {scalars['knn_top1']:.1f}%")
        if "images_per_second" in scalars:
            speed = scalars["images_per_second"]
            left = (self._steps - step) * self._batch_size / speed
            parts.append(f"{speed:,.0f} images/s")
            parts.append(f"{int(left // 3600)}:{int(left % 3600 // 60):02d}:{int(left % 60):02d} left")
        if scalars["skipped_steps"]:
            parts.append(f"{int(scalars['skipped_steps'])} updates skipped (not finite)")
        return "  ".join(parts)

    def _warn_of_waiting(self, share: float) -> None:
        if share > 0.1 and not self._warned:
            self._warned = True
            logging.warning(
                "%.0f%% of the time the device waits for data; raise config.data.threads or config.data.prefetch, or "
                "config.data.memory_bytes if the decoded images fit in memory",
                100 * share,
            )

    def _warn_of_collapse(self, step: int, scalars: Mapping[str, float]) -> None:
        self._losses.append(scalars["loss"])
        for name, sentence in alarms.collapse(scalars, self._chance_level, self._losses).items():
            if name not in self._alarms:
                self._alarms.add(name)
                logging.warning("step %d, %s: %s", step, name, sentence)


class Diverged(RuntimeError):
    """Several steps in a row were not finite; its text is for the user."""

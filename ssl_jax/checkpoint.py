"""Checkpoints of the train state: saved without stopping the device, restored from the newest that can be read."""

import contextlib
import functools
import hashlib
import itertools
import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from ssl_jax import parallel

BEST_METRIC = "knn_top1"
DIGESTS = "sha256.json"  # in a checkpoint's directory: {file: digest}
UNDIGESTED = "_CHECKPOINT_METADATA"  # the times of saving, which Orbax adds to; nothing else is read from it
UNFINISHED = "*.orbax-checkpoint-tmp*"  # Orbax's name for the directory of a checkpoint that is being written


class CheckpointError(RuntimeError):
    """Checkpoints that cannot be used; its text is for the user."""


class Checkpoints:
    """The checkpoints of one run: the newest `keep`, and the one with the best online kNN.

    A checkpoint appears under its final name only when it is complete, so a kill while saving leaves the one before.
    The digests of its files go with it: Orbax stores weights without a checksum, and of 33 bits flipped in their file
    29 were restored without a word.
    All processes of a run call each method, at the same step.
    """

    def __init__(self, directory: Path, keep: int = 3):
        self._directory = directory.absolute()
        best = preservation_policy.BestN(
            get_metric_fn=lambda metrics: metrics[BEST_METRIC], n=1, keep_checkpoints_without_metrics=False
        )
        policy = preservation_policy.AnyPreservationPolicy([preservation_policy.LatestN(keep), best])
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_digests),
        )
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def save(self, step: int, state: Any, knn_top1: float | None = None) -> None:
        """Copies the state off the device and writes it in the background; a step that is saved already is left."""
        if step in self._manager.all_steps():
            return
        metrics = None if knn_top1 is None else {BEST_METRIC: knn_top1}
        mute_late_writes()
        with self._save_errors():
            self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state)), metrics=metrics)

    def check(self) -> None:
        """Raises: CheckpointError if what is written in the background could not be; else returns at once."""
        # Orbax's own check_for_errors has nothing to say once its thread has ended.
        if not self._manager.is_saving_in_progress():
            with self._save_errors():
                self._manager.wait_until_finished()

    def restore(self, like: Any) -> Any | None:
        """The newest state that can be read, of the shapes, types and placing of `like`; None if none was ever saved.

        A newer one that is damaged, by its digests or to Orbax, is moved to `DIRECTORY.damaged/` with a warning.
        Raises: CheckpointError if there are checkpoints, but none can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        damaged = []
        for step in steps:
            state, problem = None, ""
            try:
                self._check_digests(step)
                args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
                state = self._manager.restore(step, args=args)["state"]
            except Exception as error:  # a damaged file surfaces as nearly any type, depending on which
                problem = f"{type(error).__name__}: {first_line(error)}"
            # Where one process cannot read it, none goes on from it.
            problems = [found["problem"] for found in parallel.gather_facts({"problem": problem}) if found["problem"]]
            if problems:
                logging.warning("checkpoint %d cannot be read (%s)", step, problems[0])
                damaged.append((step, problems[0]))
                continue
            for damaged_step, _ in damaged:
                self._set_aside(damaged_step)
            if damaged:
                logging.warning("going on from checkpoint %d instead", step)
            return state
        if damaged:
            raise CheckpointError(
                f"none of the checkpoints {[step for step, _ in damaged]} in {self._directory} can be read; "
                f"the newest: {damaged[0][1]}. Was the code or a package changed since? Nothing was removed; to begin "
                "anew use another --workdir"
            )
        return None

    def close(self) -> None:
        """Waits until all is written. Raises: CheckpointError if it could not be."""
        with self._save_errors():
            self._manager.wait_until_finished()
        self._manager.close()

    @contextlib.contextmanager
    def _save_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of the disk, as nearly any type, depending on where in Orbax it surfaced
            # Orbax's other writes failed as well; asyncio would print the trace of each below the sentence.
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)
            raise CheckpointError(
                f"a checkpoint could not be written to {self._directory} ({type(error).__name__}: {first_line(error)})"
                f"; those before it, {self._steps_on_disk()}, are whole. Make room there, and make it writable; the "
                "same command then goes on from the newest"
            ) from error

    def _steps_on_disk(self) -> list[int]:
        return sorted(int(path.name) for path in self._directory.iterdir() if path.name.isdigit())

    def _write_digests(self) -> None:
        # Called when all files are written, before the directory is given its final name.
        if jax.process_index() == 0:
            for written in self._directory.glob(UNFINISHED):
                digests = {
                    str(path.relative_to(written)): digest(path)
                    for path in written.rglob("*")
                    if path.is_file() and path.name != UNDIGESTED
                }
                (written / DIGESTS).write_text(json.dumps(digests, indent=1, sort_keys=True))

    def _check_digests(self, step: int) -> None:
        """Raises: CheckpointError for a file that is not as it was written; OSError for one that is gone."""
        directory = self._directory / str(step)
        if (directory / DIGESTS).exists():  # not in those of earlier versions
            for name, expected in json.loads((directory / DIGESTS).read_text()).items():
                if digest(directory / name) != expected:
                    raise CheckpointError(f"{name} is not as it was written")

    def _set_aside(self, step: int) -> None:
        if parallel.is_first():
            aside = self._directory.with_name(self._directory.name + ".damaged")
            aside.mkdir(exist_ok=True)
            names = itertools.chain([str(step)], (f"{step}.{count}" for count in itertools.count(2)))
            free = next(aside / name for name in names if not (aside / name).exists())
            shutil.move(self._directory / str(step), free)
        parallel.wait_for_all(f"checkpoint {step} set aside")
        self._manager.reload()


def without_late_writes(hook: Callable[[Any], object]) -> Callable[[Any], None]:
    """`hook`, a sys.unraisablehook, but for writes that end after the save they were part of has failed.

    Orbax closes the event loop of a save at its first error, while TensorStore still writes the other arrays; each of
    them would print that the loop is closed.
    """

    def unraisable(found: Any) -> None:
        if not (isinstance(found.exc_value, RuntimeError) and str(found.exc_value) == "Event loop is closed"):
            hook(found)

    return unraisable


@functools.cache  # once in a process
def mute_late_writes() -> None:
    sys.unraisablehook = without_late_writes(sys.unraisablehook)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:300]

"""Checkpoints of the train state: saved without stopping the device, restored from the newest that can be read."""

import contextlib
import functools
import itertools
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import jax

from ssl_jax import dist, paths
from ssl_jax.paths import AnyPath
from ssl_jax.stores import StoreError
from ssl_jax.workdir import facts, files

if TYPE_CHECKING:
    from ssl_jax.training.checkpoint_manager import Manager

DIGESTS = "sha256.json"  # in a checkpoint's directory: {file: digest}
OWN_DIGESTS = "sha256.process_{}.json"  # beside it, while the checkpoint is written: those of a process's own files
OWN_FILES = "/ocdbt.process_{}/"  # a process's folder, by Orbax
UNDIGESTED = "_CHECKPOINT_METADATA"  # Orbax adds the times of saving to this file; nothing else is read from it
UNFINISHED = "*.orbax-checkpoint-tmp*"  # Orbax's name for the directory of a checkpoint that is being written


class CheckpointError(RuntimeError):
    """Checkpoints that cannot be used; its text is for the user."""


class Checkpoints:
    """The checkpoints of one run: the newest `keep`, and the one with the best online kNN.

    A checkpoint appears under its final name only when it is complete, so a kill while saving leaves the one before. In
    a store, which cannot rename a directory, a file that Orbax writes last says that a checkpoint is complete.
    Each checkpoint holds digests of its files, because Orbax stores weights without a checksum: of 33 bits flipped in a
    file of weights, 29 were restored without an error.
    All processes of a run must call each method, at the same step.

    Attributes:
      before_commit: called in the first process, by another thread, before a checkpoint counts as complete. If it
        raises, the checkpoint never does.
    """

    def __init__(self, directory: AnyPath, keep: int = 3):
        self._directory, self._keep = paths.absolute(directory), keep
        paths.make_directory(self._directory)
        self.before_commit: Callable[[], None] = lambda: None
        self._failures: list[BaseException] = []  # of this process's writes
        self._opened: Manager | None = None

    @property
    def _manager(self) -> "Manager":
        if self._opened is None:
            # Imported at the first checkpoint: Orbax takes 0.3 s, for which the first step would wait.
            from ssl_jax.training.checkpoint_manager import Manager

            self._opened = Manager(
                self._directory, self._keep, self._failures, self._write_own_digests, self._write_digests
            )
        return self._opened

    def save(self, step: int, state: Any, knn_top1: float | None = None) -> None:
        """Copies the state off the device and writes it in the background. Does nothing if the step is saved already.

        Waits first for the checkpoint that is still being written. Raises: CheckpointError if that write failed.
        """
        if step in self._manager.all_steps():
            return
        mute_late_writes()
        self._wait()
        jax.block_until_ready(state)  # a failed step (another process was killed, say) is no error of saving
        with self._save_errors():
            self._manager.save_state(step, state, knn_top1)

    def check(self) -> None:
        """Raises: CheckpointError if a write in the background failed; else returns at once."""
        if self._opened is None:
            return
        with self._save_errors():
            if self._failures:
                raise self._failures[0]
            # Orbax's own check_for_errors reports nothing once its thread has ended.
            if not self._manager.is_saving_in_progress():
                self._manager.wait_until_finished()

    def restore(self, like: Any) -> Any | None:
        """The newest undamaged state, with the shapes, types and sharding of `like`; None if none was ever saved.

        Digests tell which checkpoints are damaged. Newer damaged ones move to `DIRECTORY.damaged/`, with a warning.
        All processes go on from the same checkpoint.
        Raises: CheckpointError if all checkpoints are damaged, or if an undamaged one cannot be restored. Then nothing
          is moved.
        """
        if not any(of["saved"] for of in dist.gather_facts({"saved": bool(self._steps_on_disk())})):
            return None
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            if damage := self._damage(step):
                logging.warning("checkpoint %d cannot be read (%s)", step, damage)
                damaged[step] = damage
                continue
            try:
                state = self._manager.restore_state(step, abstract)
            except Exception as error:  # of nearly any type: it depends on where in Orbax it surfaces
                raise CheckpointError(
                    f"checkpoint {step} in {self._directory} cannot be restored "
                    f"({name_and_line(error)}), although none of its files is known to be damaged. "
                    "Was the code or a package changed since, or is memory short? Nothing was "
                    "removed; to begin anew use another --workdir"
                ) from error
            for damaged_step in damaged:
                self._set_aside(damaged_step)
            if damaged:
                logging.warning("going on from checkpoint %d instead", step)
            return state
        if damaged:
            newest, damage = next(iter(damaged.items()))
            raise CheckpointError(
                f"none of the checkpoints {[*damaged]} in {self._directory} can be read; {newest}: {damage}. Nothing "
                "was removed; to begin anew use another --workdir"
            )
        return None

    def newest(self) -> dict[str, Any] | None:
        """The newest state as nested dicts of arrays, which need no state of their shapes; None if there is none.

        Its files are not compared with their digests.
        Raises: CheckpointError if it cannot be restored.
        """
        steps = self._steps_on_disk()
        if not steps:
            return None
        try:
            return self._manager.restore_state(max(steps), None)
        except Exception as error:
            raise CheckpointError(
                f"checkpoint {max(steps)} in {self._directory} cannot be restored ({name_and_line(error)})"
            ) from error

    def close(self) -> None:
        """Waits until all is written. Raises: CheckpointError if a write failed."""
        if self._opened is not None:
            self._wait()
            self._opened.close()

    def _wait(self) -> None:
        # Not Orbax's own wait: in a process whose write failed, that waits 20 minutes for the other processes.
        while self._manager.is_saving_in_progress():
            self.check()
            time.sleep(0.02)
        self.check()

    @contextlib.contextmanager
    def _save_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a disk error, of nearly any type: it depends on where in Orbax it surfaces
            # Orbax's other writes failed, too; asyncio and Orbax would print the trace of each below this error.
            for name in ("asyncio", "absl"):
                logging.getLogger(name).setLevel(logging.CRITICAL)
            remote = paths.is_remote(self._directory)
            remedy = "See that it answers and may be written to" if remote else "Make room there, and make it writable"
            if jax.process_count() > 1:
                remedy += ". If another process ended, its own output says why"
            raise CheckpointError(
                f"a checkpoint could not be written to {self._directory} ({name_and_line(error)}); "
                f"the earlier checkpoints {self._steps_on_disk()} are whole. {remedy}; the same "
                "command then goes on from the newest"
            ) from error

    def _steps_on_disk(self) -> list[int]:
        return facts.complete_steps(self._directory)

    def _write_own_digests(self) -> None:
        # Called in each process when its files are written: so all processes read what one would read alone.
        number = jax.process_index()
        for written in self._unfinished():
            names = [name for name in paths.files_below(written) if OWN_FILES.format(number) in name]
            # Until all files are written, Orbax's folder "state" may have a longer name.
            found = {f"state/{name.partition('/')[2]}": of for name, of in digests(written, names).items()}
            files.write(written / OWN_DIGESTS.format(number), json.dumps(found))

    def _write_digests(self) -> None:
        # Called in the first process when all files are written, before the directory is given its final name.
        self.before_commit()
        for written in self._unfinished():
            names, found = set(paths.files_below(written)), {}
            for part in names & {OWN_DIGESTS.format(number) for number in range(jax.process_count())}:
                found |= json.loads(paths.read_bytes(written / part))
                paths.remove(written / part)
                names.remove(part)
            left = [name for name in names - set(found) if name.rpartition("/")[2] != UNDIGESTED]
            files.write(written / DIGESTS, json.dumps(found | digests(written, left), indent=1, sort_keys=True))

    def _unfinished(self) -> list[AnyPath]:
        """The directories of checkpoints that are being written."""
        if not paths.is_remote(self._directory):
            return list(self._directory.glob(UNFINISHED))
        steps = [int(name) for name in paths.names(self._directory) if name.isdigit()]
        return [self._directory / str(step) for step in sorted(set(steps).difference(self._steps_on_disk()))]

    def _damage(self, step: int) -> str:
        """What is wrong with the checkpoint's files, by their digests; "" if nothing is, or if there are no digests.

        Each process reads a part of the files; the answer is the same in all processes.
        Raises: CheckpointError, in every process, if the disk does not answer one of them.
        """
        damage, silence = "", ""
        try:
            damage = self._changed_file(step)
        except (FileNotFoundError, ValueError) as error:
            damage = name_and_line(error)
        except (OSError, StoreError) as error:
            silence = name_and_line(error)
        everywhere = dist.gather_facts({"damage": damage, "silence": silence})
        for silence in filter(None, (of["silence"] for of in everywhere)):
            raise CheckpointError(
                f"checkpoint {step} in {self._directory} cannot be read now ({silence}); it may be "
                "whole, and nothing was changed. When the disk answers again, the same command goes "
                "on from it"
            )
        return next(filter(None, (of["damage"] for of in everywhere)), "")

    def _changed_file(self, step: int) -> str:
        directory = self._directory / str(step)
        if not (directory / DIGESTS).exists():
            return ""
        written = sorted(json.loads(paths.read_bytes(directory / DIGESTS)).items())
        own = dict(written[jax.process_index() :: jax.process_count()])
        changed = [name for name, found in digests(directory, [*own]).items() if found != own[name]]
        return f"{changed[0]} is not as it was written" if changed else ""

    def _set_aside(self, step: int) -> None:
        if dist.is_first():
            aside = self._directory.with_name(self._directory.name + ".damaged")
            paths.make_directory(aside)
            names = itertools.chain([str(step)], (f"{step}.{count}" for count in itertools.count(2)))
            free = next(aside / name for name in names if not (aside / name).exists())
            paths.move_folder(self._directory / str(step), free, first=facts.COMMITTED)
        dist.wait_for_all(f"checkpoint {step} set aside")
        self._manager.reload()


def without_late_writes(hook: Callable[[Any], object]) -> Callable[[Any], None]:
    """`hook`, a sys.unraisablehook, that ignores writes that end after their save has failed.

    Orbax closes the event loop of a save at its first error, while TensorStore still writes the other arrays. Each of
    these writes would print that the loop is closed.
    """

    def unraisable(found: Any) -> None:
        if not (isinstance(found.exc_value, RuntimeError) and str(found.exc_value) == "Event loop is closed"):
            hook(found)

    return unraisable


@functools.cache  # once in a process
def mute_late_writes() -> None:
    sys.unraisablehook = without_late_writes(sys.unraisablehook)


def digests(directory: AnyPath, names: Sequence[str]) -> dict[str, str]:
    """{name: digest} of files in the directory."""
    with ThreadPoolExecutor() as pool:
        return dict(zip(names, pool.map(lambda name: files.digest(directory / name), names), strict=True))


def name_and_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"

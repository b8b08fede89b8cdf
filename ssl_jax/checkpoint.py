"""Checkpoints of the train state: saved without stopping the device, restored from the newest that can be read."""

import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from ssl_jax import parallel

BEST_METRIC = "knn_top1"


class CheckpointError(RuntimeError):
    """Checkpoints that cannot be used; its text is for the user."""


class Checkpoints:
    """The checkpoints of one run: the newest `keep`, and the one with the best online kNN.

    A checkpoint appears under its final name only when it is complete, so a kill while saving leaves the one before.
    All processes of a run call each method, at the same step.
    """

    def __init__(self, directory: Path, keep: int = 3):
        self._directory = directory.absolute()
        best = preservation_policy.BestN(
            get_metric_fn=lambda metrics: metrics[BEST_METRIC], n=1, keep_checkpoints_without_metrics=False
        )
        policy = preservation_policy.AnyPreservationPolicy([preservation_policy.LatestN(keep), best])
        options = ocp.CheckpointManagerOptions(preservation_policy=policy, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def save(self, step: int, state: Any, knn_top1: float | None = None) -> None:
        """Copies the state off the device and writes it in the background; a step that is saved already is left."""
        if step in self._manager.all_steps():
            return
        metrics = None if knn_top1 is None else {BEST_METRIC: knn_top1}
        with self._writing_errors():
            self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state)), metrics=metrics)

    def check(self) -> None:
        """Raises: CheckpointError if a save has failed in the background. Waits for none that is going on."""
        if not self._manager.is_saving_in_progress():
            with self._writing_errors():
                self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _writing_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # TensorStore's are ValueErrors
            raise CheckpointError(
                f"a checkpoint could not be written to {self._directory}: {first_line(error)}. The ones before it are "
                "whole; with that mended, the same command goes on from the newest"
            ) from error

    def restore(self, like: Any) -> Any | None:
        """The newest state that can be read, of the shapes, types and placing of `like`; None if none was ever saved.

        A newer one that is damaged is moved to `DIRECTORY.damaged/` with a warning.
        Raises: CheckpointError if there are checkpoints, but none can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        damaged = []
        for step in steps:
            state, problem = None, ""
            try:
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

    def _set_aside(self, step: int) -> None:
        if parallel.is_first():
            aside = self._directory.with_name(self._directory.name + ".damaged")
            aside.mkdir(exist_ok=True)
            shutil.rmtree(aside / str(step), ignore_errors=True)
            shutil.move(self._directory / str(step), aside / str(step))
        parallel.wait_for_all(f"checkpoint {step} set aside")
        self._manager.reload()

    def close(self) -> None:
        """Waits until all is written. Raises: CheckpointError for what went wrong in the background."""
        with self._writing_errors():
            self._manager.wait_until_finished()
        self._manager.close()


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:300]

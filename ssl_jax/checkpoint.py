"""Checkpoints of the train state: saved without stopping the device, restored from the newest that can be read."""

import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

BEST_METRIC = "knn_top1"


class CheckpointError(RuntimeError):
    """Checkpoints that cannot be used; its text is for the user."""


class Checkpoints:
    """The checkpoints of one run: the newest `keep`, and the one with the best online kNN.

    A checkpoint appears under its final name only when it is complete, so a kill while saving leaves the one before.
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
        self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state)), metrics=metrics)

    def restore(self, like: Any) -> Any | None:
        """The newest state that can be read, of the shapes, types and placing of `like`; None if none was ever saved.

        A newer one that is damaged is moved to `DIRECTORY.damaged/` with a warning.
        Raises: CheckpointError if there are checkpoints, but none can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        damaged = []
        for step in steps:
            try:
                args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
                state = self._manager.restore(step, args=args)["state"]
            except Exception as error:  # a damaged file surfaces as nearly any type, depending on which
                logging.warning("checkpoint %d cannot be read (%s: %s)", step, type(error).__name__, first_line(error))
                damaged.append((step, error))
                continue
            for damaged_step, _ in damaged:
                self._set_aside(damaged_step)
            if damaged:
                logging.warning("going on from checkpoint %d instead", step)
            return state
        if damaged:
            raise CheckpointError(
                f"none of the checkpoints {[step for step, _ in damaged]} in {self._directory} can be read; "
                f"the newest: {first_line(damaged[0][1])}. Was the code or a package changed since? Nothing was "
                "removed; to begin anew use another --workdir"
            ) from damaged[0][1]
        return None

    def _set_aside(self, step: int) -> None:
        aside = self._directory.with_name(self._directory.name + ".damaged")
        aside.mkdir(exist_ok=True)
        shutil.rmtree(aside / str(step), ignore_errors=True)
        shutil.move(self._directory / str(step), aside / str(step))
        self._manager.reload()

    def close(self) -> None:
        """Waits until all is written; raises what went wrong in the background."""
        self._manager.wait_until_finished()
        self._manager.close()


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:300]

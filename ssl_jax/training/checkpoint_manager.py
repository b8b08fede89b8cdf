"""Orbax's manager of the checkpoints of a run, with errors that are told as soon as a write fails."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from ssl_jax import paths
from ssl_jax.paths import AnyPath
from ssl_jax.training import orbax_stores

BEST_METRIC = "knn_top1"


class Manager(ocp.CheckpointManager):
    """Keeps the newest `keep` states, and the one with the best online kNN.

    Args:
      directory: of the checkpoints, an absolute path.
      failures: errors of this process's writes are added to it.
      on_own_written: called in each process when its files of a checkpoint are written.
      on_written: called in the first process after that, when all files are, before the directory is given its final
        name.
    """

    def __init__(
        self,
        directory: AnyPath,
        keep: int,
        failures: list[BaseException],
        on_own_written: Callable[[], None],
        on_written: Callable[[], None],
    ):
        best = preservation_policy.BestN(
            get_metric_fn=lambda metrics: metrics[BEST_METRIC], n=1, keep_checkpoints_without_metrics=False
        )
        policy = preservation_policy.AnyPreservationPolicy([preservation_policy.LatestN(keep), best])
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(
                post_finalization_callback=lambda: _noted(on_written, failures),
                # If it failed in the background, threads would wait for it for 20 minutes, and the program for them.
                create_directories_asynchronously=False,
            ),
        )
        if paths.is_remote(directory):
            orbax_stores.enable()
        handler, registry = _NotingHandler(failures, on_own_written), ocp.handlers.DefaultCheckpointHandlerRegistry()
        for kind in (ocp.args.StandardSave, ocp.args.StandardRestore):
            registry.add("state", kind, handler)
        super().__init__(directory, options=options, handler_registry=registry)

    def save_state(self, step: int, state: Any, knn_top1: float | None) -> None:
        metrics = None if knn_top1 is None else {BEST_METRIC: knn_top1}
        self.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state)), metrics=metrics)

    def restore_state(self, step: int, abstract: Any) -> Any:
        """abstract: the shapes and types of the state; None for nested dicts as they were saved."""
        return self.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)))["state"]


def _noted(work: Callable[[], None], failures: list[BaseException]) -> None:
    with _noting(failures):
        work()


@contextlib.contextmanager
def _noting(failures: list[BaseException]) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        failures.append(error)
        raise


class _NotingHandler(ocp.StandardCheckpointHandler):
    """Orbax's handler. Its writes add their error to `failures` as soon as they fail. After them it calls `on_written`.

    Orbax itself reports an error when all processes are done with their writes, or after 20 minutes.
    """

    def __init__(self, failures: list[BaseException], on_written: Callable[[], None]):
        super().__init__()
        self._failures, self._on_written = failures, on_written

    async def async_save(self, *args: Any, **kwargs: Any) -> list[Any]:
        writes = await super().async_save(*args, **kwargs)
        return [_NotingWrite(write, self._failures) for write in (*(writes or ()), _After(self._on_written))]


class _After:
    """In the place of a write: `work`, after the writes before it, as Orbax waits for one after the other."""

    def __init__(self, work: Callable[[], None]):
        self._work = work

    def result(self, timeout: float | None = None) -> None:
        self._work()

    def cancel(self) -> None:
        pass


class _NotingWrite:
    def __init__(self, write: Any, failures: list[BaseException]):
        self._write, self._failures = write, failures

    def result(self, timeout: float | None = None) -> Any:
        with _noting(self._failures):
            return self._write.result(timeout)

    def cancel(self) -> bool | None:
        return self._write.cancel()

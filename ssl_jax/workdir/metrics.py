"""The metrics of a run: metrics.jsonl, one object a line, and the same as TensorBoard events."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from ssl_jax import paths
from ssl_jax.paths import AnyPath, StorePath
from ssl_jax.stores import StoreError
from ssl_jax.workdir import files
from ssl_jax.workdir.mirror import Mirror

# Metrics that depend on the machine and on what else it does. All others are the same in a run that was interrupted.
TIMES = frozenset(
    [
        *("images_per_second", "data_wait", "goodput", "time_input", "time_host", "time_evaluation"),
        *("time_checkpoint", "time_others", "lost_min", "lost_max", "busy_min", "busy_max", "slowest_process"),
    ]
)


class MetricsError(ValueError):
    """A metrics.jsonl that cannot be read; its text is for the user."""


class MetricsWriter:
    """Appends to `workdir`/metrics.jsonl and `workdir`/tensorboard.

    If the workdir is in a store, they are written on a local disk and uploaded in the background: see `Mirror`.

    Args:
      workdir: of the run.
      step: the step that the run goes on from. Lines of later steps, written by a run that was killed before it saved
        those steps, are dropped; at step 0 all are. So each logged step has one line.
      check: called in `write` and, with now=True, in `sync`; raises if the workdir is no longer this process's.
    Raises: MetricsError if metrics.jsonl is damaged; OSError and StoreError, here, in `write` and in `sync`.
    """

    def __init__(self, workdir: AnyPath, step: int, check: Callable[..., None] = lambda **_: None):
        # Imported here: tensorboardX loads torch where that is installed, which importing ssl_jax.cli.train must not.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]  made at run time

        kept = [metrics for metrics in read_metrics(workdir / "metrics.jsonl") if step and metrics["step"] <= step]
        self._mirror = Mirror(workdir) if isinstance(workdir, StorePath) else None
        folder, self._check = workdir if self._mirror is None else self._mirror.folder, check
        self._path, self._directory = folder / "metrics.jsonl", folder / "tensorboard"
        lines = [json.dumps(metrics) + "\n" for metrics in kept]
        with files.replacing(self._path) as file:
            file.write("".join(lines).encode())
        self._file = self._path.open("a")
        self._directory.mkdir(exist_ok=True)
        # Not its SummaryWriter: that one's thread ends at the first disk error, and the eleventh event waits for it.
        self._events = EventsWriter(str(self._directory / "events"))
        # Makes TensorBoard hide what earlier starts wrote of this step and later ones.
        self._events.write_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))
        self.sync()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one line and flushes it. A value that is not finite becomes null, because JSON has no NaN."""
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]  made at run time
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]  made at run time

        self._check()
        if self._mirror is not None:
            self._mirror.check()
        finite = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        with files.named_errors(self._path):
            self._file.write(json.dumps({"step": step, **finite}) + "\n")
            self._file.flush()
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        with files.named_errors(self._directory):
            self._events.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
            self._events.flush()

    def sync(self) -> None:
        """All that was written is in the workdir afterwards, if that is in a store. Another thread may call it."""
        if self._mirror is not None:
            self._check(now=True)
            self._mirror.sync()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        """After an error, what was logged before it is uploaded, as it may say why; not if the store is the reason."""
        if kind is not None and not issubclass(kind, StoreError):
            with contextlib.suppress(StoreError, OSError, ValueError):
                self.sync()

    def close(self) -> None:
        self._file.close()
        self._events.close()
        if self._mirror is not None:
            self._mirror.close()


def read_metrics(path: AnyPath) -> list[dict[str, Any]]:
    """The objects of a metrics.jsonl; [] if there is no file. A last line that a kill cut short is left out.

    Raises: MetricsError for a line that is no JSON object with a step.
    """
    if not path.exists():
        return []
    content = paths.read_bytes(path)
    complete = content[: content.rfind(b"\n") + 1]
    return [_read_line(path, number, line) for number, line in enumerate(complete.splitlines(), start=1)]


def _read_line(path: AnyPath, number: int, line: bytes) -> dict[str, Any]:
    try:
        metrics = json.loads(line)
        if isinstance(metrics, dict) and isinstance(metrics.get("step"), int):
            return metrics
        reason = "it is no object with a step"
    except (ValueError, RecursionError) as error:
        reason = str(error)
    raise MetricsError(
        f"{path} is damaged in line {number} ({reason}); repair or remove that line, or move the file away"
    )

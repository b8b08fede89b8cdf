"""The metrics of a run: metrics.jsonl, one object a line, and the same as TensorBoard events."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssl_jax.workdir import files


class MetricsError(ValueError):
    """A metrics.jsonl that cannot be read; its text is for the user."""


class MetricsWriter:
    """Appends to `workdir`/metrics.jsonl and `workdir`/tensorboard.

    Args:
      workdir: of the run.
      step: the step that the run goes on from. Lines of later steps, written by a run that was killed before it saved
        those steps, are dropped; at step 0 all are. So each logged step has one line.
    Raises: MetricsError if metrics.jsonl is damaged; OSError, here and in `write`.
    """

    def __init__(self, workdir: Path, step: int):
        # Imported here: tensorboardX loads torch where that is installed, which importing ssl_jax.cli.train must not.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]  made at run time

        self._path, self._directory = workdir / "metrics.jsonl", workdir / "tensorboard"
        kept = [metrics for metrics in read_metrics(self._path) if step and metrics["step"] <= step]
        lines = [json.dumps(metrics) + "\n" for metrics in kept]
        with files.replacing(self._path) as file:
            file.write("".join(lines).encode())
        self._file = self._path.open("a")
        self._directory.mkdir(exist_ok=True)
        # Not its SummaryWriter: that one's thread ends at the first disk error, and the eleventh event waits for it.
        self._events = EventsWriter(str(self._directory / "events"))
        # Makes TensorBoard hide what earlier starts wrote of this step and later ones.
        self._events.write_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one line and flushes it. A value that is not finite becomes null, because JSON has no NaN."""
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]  made at run time
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]  made at run time

        finite = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        with files.named_errors(self._path):
            self._file.write(json.dumps({"step": step, **finite}) + "\n")
            self._file.flush()
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        with files.named_errors(self._directory):
            self._events.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
            self._events.flush()

    def close(self) -> None:
        self._file.close()
        self._events.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The objects of a metrics.jsonl; [] if there is no file. A last line that a kill cut short is left out.

    Raises: MetricsError for a line that is no JSON object with a step.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    return [_read_line(path, number, line) for number, line in enumerate(complete.splitlines(), start=1)]


def _read_line(path: Path, number: int, line: bytes) -> dict[str, Any]:
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

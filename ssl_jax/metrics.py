"""The metrics of a run: metrics.jsonl, one object a line, and the same as TensorBoard events."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class MetricsWriter:
    """Appends to `workdir`/metrics.jsonl and `workdir`/tensorboard.

    Args:
      workdir: of the run.
      step: the step that the run goes on from; what was written of later steps, by a run that was killed before it
        saved them, is dropped, so that each logged step has one line.
    """

    def __init__(self, workdir: Path, step: int):
        # Imported here: tensorboardX loads torch where that is installed, which `import ssl_jax.train` must not.
        from tensorboardX import SummaryWriter

        path = workdir / "metrics.jsonl"
        lines = [json.dumps(metrics) + "\n" for metrics in read_metrics(path) if metrics["step"] <= step]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(lines))
        os.replace(partial, path)
        self._file = path.open("a")
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """One line, flushed; a value that is not finite is written as null, which JSON has and NaN not."""
        finite = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        self._events.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The objects of a metrics.jsonl, a last line cut short by a kill left out; [] where there is no file."""
    if not path.exists():
        return []
    text = path.read_text()
    complete = text[: text.rfind("\n") + 1]
    return [json.loads(line) for line in complete.splitlines()]

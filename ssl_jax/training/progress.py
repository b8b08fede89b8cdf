"""What a run reports while it trains: metrics, speed, warnings."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ssl_jax import dist
from ssl_jax.health import alarms
from ssl_jax.training import timing
from ssl_jax.training.step import is_logged
from ssl_jax.workdir.metrics import MetricsWriter

# Share of a run after which there are warnings of a collapsed network. Before that, all networks are near chance.
COLLAPSE_FROM = 0.1

OnMetrics = Callable[[int, Mapping[str, float]], object]


class Progress:
    """Fetches the metrics of a logged step when the device is a step further on, then writes and prints them.

    Only the first step's are waited for.

    Args:
      writer: None in a process that leaves writing and printing to another.
      learning_rate: step -> rate; None if it is not known.
      chance_level: the loss of a network that has learnt nothing, or None.
      start, steps: the run goes from step start + 1 to `steps`.
      stop_after_skipped: this many skipped updates in a row end the run.
      on_metrics: called with (step, what is logged) if there is a writer.
      activity: of the main thread.
      mesh: needed with several processes, which then all call `step` for the same steps.
      hosts: names of the processes' machines.
    """

    def __init__(
        self,
        writer: MetricsWriter | None,
        learning_rate: Callable[[int], Any] | None,
        *,
        chance_level: float | None,
        batch_size: int,
        log_every: int,
        start: int,
        steps: int,
        stop_after_skipped: int,
        on_metrics: OnMetrics | None = None,
        activity: timing.Activity | None = None,
        mesh: dist.Mesh | None = None,
        hosts: Sequence[str] = ("",),
    ):
        self._writer, self._learning_rate, self._chance_level = writer, learning_rate, chance_level
        self._on_metrics = on_metrics
        self._batch_size, self._log_every, self._steps = batch_size, log_every, steps
        self._stop_after_skipped = stop_after_skipped
        self._activity, self._mesh, self._hosts = activity or timing.Activity(), mesh, hosts
        self._pending: tuple[int, dict[str, Any]] | None = None
        # Of the pending step: where its interval's time went, in this process and in all.
        self._times: timing.Times | None = None
        self._everyones: jax.Array | None = None
        self._warned: set[str] = set()
        self._alarms: set[str] = set()
        self._losses: list[float] = []  # of logged steps, from COLLAPSE_FROM on
        # The current interval between logged steps, without pauses. The first begins when the first step is compiled.
        self._interval_start_step: int | None = None
        self._interval_start, self._first = 0.0, start + 1

    @contextlib.contextmanager
    def paused(self, state: Any, stage: str) -> Iterator[None]:
        """Time within this context counts for no step, but for `stage`. First it waits for the `state` of the last
        step; that counts."""
        with self._activity.doing(timing.STEP):
            jax.block_until_ready(state)
        begun = time.perf_counter()
        with self._activity.doing(stage):
            yield
        self._interval_start += time.perf_counter() - begun

    def step(self, step: int, metrics: Mapping[str, Any], *, more: bool = False) -> None:
        """Takes the `metrics` of the step just dispatched: device arrays that are not waited for.

        more: whether `add` follows for this step.
        """
        self.flush()
        if is_logged(step, self._log_every, self._steps):
            # Dispatched before the next step: a device works in order, so afterwards the rate would wait for that step.
            rate = {} if self._learning_rate is None else {"lr": self._learning_rate(step - 1)}
            self._pending = (step, {**metrics, **rate})
            self._times, self._everyones = self._activity.take(), None
            if jax.process_count() > 1 and self._mesh is not None:
                self._everyones = dist.everyones(dataclasses.astuple(self._times), self._mesh)
        if step == self._first:
            jax.block_until_ready(metrics)
            self._times = None
            if not more:
                self.flush()  # a first sign of life, before anything else is compiled
            self._restart(step)  # compiled: the clock starts here
            self._activity.restart()

    def add(self, **scalars: float) -> None:
        """Adds metrics to the logged step that was dispatched last."""
        assert self._pending is not None
        self._pending[1].update(scalars)

    def flush(self) -> None:
        """Writes the pending metrics. Raises: Diverged after too many skipped updates in a row."""
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        with self._activity.doing(timing.STEP):
            scalars = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if self._chance_level is not None:
            scalars["chance_level"] = self._chance_level
        seconds = time.perf_counter() - self._interval_start
        if self._interval_start_step is not None and step > self._interval_start_step:
            scalars["images_per_second"] = (step - self._interval_start_step) * self._batch_size / seconds
            self._restart(step)
        if self._times is not None:
            everyones = () if self._everyones is None else np.asarray(self._everyones).tolist()
            shares = timing.shares(self._times, [timing.Times(*row) for row in everyones])
            scalars |= {"data_wait": self._times.data_wait, **shares}
            self._warn_of_waiting(scalars)
        in_a_row = scalars.pop("skipped_in_a_row")
        if self._writer:
            self._writer.write(step, scalars)
            print(self._line(step, scalars), flush=True)
            if self._on_metrics:
                self._on_metrics(step, scalars)
            if step > COLLAPSE_FROM * self._steps:
                self._warn_of_collapse(step, scalars)
        if in_a_row >= self._stop_after_skipped:
            now = f" (now {scalars['lr']:.3g})" if "lr" in scalars else ""
            raise Diverged(
                f"the loss or its gradient was not finite in the last {int(in_a_row)} steps, up to "
                f"step {step}, and none of these steps was applied. Look at loss and grad_norm in "
                f"metrics.jsonl before these steps; lower config.optimizer.lr{now} or lengthen "
                "config.optimizer.warmup_steps"
            )

    def _restart(self, step: int) -> None:
        self._interval_start_step, self._interval_start = step, time.perf_counter()

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
        if went := timing.described(scalars, self._hosts):
            parts.append(went)
        if scalars["skipped_steps"]:
            parts.append(f"{int(scalars['skipped_steps'])} updates skipped (not finite)")
        return "  ".join(parts)

    def _warn_of_waiting(self, scalars: Mapping[str, float]) -> None:
        if scalars["data_wait"] > timing.MOST_LOST and "data" not in self._warned:
            self._warned.add("data")
            logging.warning(
                "%.0f%% of the time the device waits for data; raise config.data.threads or config.data.prefetch, or "
                "config.data.memory_bytes if the decoded images fit in memory",
                100 * scalars["data_wait"],
            )
        slowest = timing.slow_process(scalars)
        costly = scalars.get("lost_max", 0.0) - scalars.get("lost_min", 0.0) > timing.MOST_LOST
        if self._writer and slowest is not None and costly and "process" not in self._warned:
            self._warned.add("process")
            logging.warning(
                "process %d on %s keeps the others waiting: its devices have nothing to do for %.0f%% of the time, "
                "those of the fastest process for %.0f%%. Look at what else that machine does, at its disk and network",
                slowest,
                self._hosts[slowest],
                100 * scalars["lost_max"],
                100 * scalars["lost_min"],
            )

    def _warn_of_collapse(self, step: int, scalars: Mapping[str, float]) -> None:
        self._losses.append(scalars["loss"])
        for name, sentence in alarms.collapse(scalars, self._chance_level, self._losses).items():
            if name not in self._alarms:
                self._alarms.add(name)
                logging.warning("step %d, %s: %s", step, name, sentence)


class Diverged(RuntimeError):
    """Several steps in a row were not finite; its text is for the user."""

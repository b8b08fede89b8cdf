"""What a run's main thread does, and what the time between two logged steps went to."""

import collections
import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

STEP, INPUT, EVALUATION, CHECKPOINT, HOST = "step", "input", "evaluation", "checkpoint", "host"
LOST = (INPUT, HOST, EVALUATION, CHECKPOINT)  # what keeps the devices of a process from stepping
MOST_LOST = 0.1  # share of the time from which on a line says where it went


class Activity:
    """What the main thread does: the `step` it is at and the `stage` of it. Other threads may read its attributes.

    It adds up the time in which this process's devices had no step to do. Time in which the host works, or waits for
    images, is counted only if the devices have finished all earlier steps by then.
    """

    def __init__(self, stage: str = HOST) -> None:
        self.step, self.stage = 0, stage
        self.steps_done = 0  # by this start of the run
        self.compiling = False  # whether the step that it is at is the first with its program
        self.changes = 0  # of the stage; it counts up while the main thread makes progress
        self._since_step: dict[str, float] = collections.defaultdict(float)  # {stage: seconds}
        self._lost: dict[str, float] = collections.defaultdict(float)
        self._busy = 0.0
        self._start = self._stage_start = time.perf_counter()

    @contextlib.contextmanager
    def doing(self, stage: str) -> Iterator[None]:
        outer = self.stage
        self._enter(stage)
        try:
            yield
        finally:
            self._enter(outer)

    @contextlib.contextmanager
    def stepping(self, step: int, earlier: Any = None, *, compiling: bool = False) -> Iterator[None]:
        """The devices are given a step within this context, and waited for.

        earlier: a device array that the step before computes; None at the first step. compiling: whether this step's
          program is new, and so is compiled.
        """
        # A device that has not finished the step before has lost no time, whatever the host did meanwhile.
        ran_dry = earlier is None or earlier.is_ready()
        self.step, self.compiling = step, compiling
        outer = self.stage
        self._enter(STEP)
        for stage in LOST if ran_dry else (EVALUATION, CHECKPOINT):
            self._lost[stage] += self._since_step[stage]
        self._busy += self._since_step[INPUT] + self._since_step[HOST]
        self._since_step.clear()
        try:
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                yield
            self.steps_done += 1
        finally:
            self.compiling = False
            self._enter(outer)

    def _enter(self, stage: str) -> None:
        now = time.perf_counter()
        self._since_step[self.stage] += now - self._stage_start
        self.stage, self._stage_start = stage, now
        self.changes += 1

    def take(self) -> "Times":
        """Where the time went since the last call, or since `restart`."""
        lost = {stage: self._lost[stage] for stage in LOST}
        times = Times(whole=time.perf_counter() - self._start, busy=self._busy, **lost)
        self.restart()
        return times

    def restart(self) -> None:
        self._lost.clear()
        self._since_step.clear()
        self._busy = 0.0
        self._start = self._stage_start = time.perf_counter()


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of an interval of one process.

    whole: in all. busy: in which the host read images or did other work, also while the devices did steps. The others:
    in which the devices had no step to do, by the cause.
    """

    whole: float
    busy: float
    input: float
    host: float
    evaluation: float
    checkpoint: float

    @property
    def lost(self) -> float:
        return self.input + self.host + self.evaluation + self.checkpoint

    @property
    def data_wait(self) -> float:
        """The share of input in the time that is neither evaluation nor checkpoint, 0 to 1."""
        steps = self.whole - self.evaluation - self.checkpoint
        return min(self.input / steps, 1.0) if steps > 0 else 0.0


def shares(here: Times, everywhere: Sequence[Times] = ()) -> dict[str, float]:
    """What metrics.jsonl says of an interval, as shares of its time, 0 to 1.

    goodput: in which devices did steps. time_CAUSE: in which those of this process did not. With the times of each
    process, if there are several: time_others, by which this process lost less than the one that lost most, for which
    its devices wait in the collectives of a step; lost_min, lost_max and busy_min, busy_max over the processes;
    slowest_process, the index of the one that lost most, or among equals was most busy.
    """
    whole = max(here.whole, 1e-9)
    result = {f"time_{cause}": min(getattr(here, cause) / whole, 1.0) for cause in LOST}
    most = here.lost
    if everywhere:
        lost, busy = [times.lost for times in everywhere], [times.busy for times in everywhere]
        most = max(*lost, here.lost)
        result["time_others"] = min((most - here.lost) / whole, 1.0)
        for name, seconds in (("lost", lost), ("busy", busy)):
            result |= {f"{name}_min": min(min(seconds) / whole, 1.0), f"{name}_max": min(max(seconds) / whole, 1.0)}
        slowest = max(range(len(everywhere)), key=lambda index: (round(lost[index] / whole, 2), busy[index]))
        result["slowest_process"] = float(slowest)
    return {"goodput": max(1.0 - most / whole, 0.0)} | result


def described(scalars: Mapping[str, float], hosts: Sequence[str]) -> str:
    """Where the time went, and which process is slow, for the printed line; "" if nearly all of it went into steps.

    scalars: of `shares`. hosts: the name of each process's machine.
    """
    parts: list[str] = []
    if scalars.get("goodput", 1.0) < 1 - MOST_LOST:
        causes = {name: scalars.get(f"time_{name}", 0.0) for name in (*LOST, "others")}
        listed = ", ".join(f"{name} {share:.0%}" for name, share in causes.items() if share >= 0.005)
        parts.append(f"goodput {scalars['goodput']:.0%} ({listed})")
    slowest = slow_process(scalars)
    if slowest is not None:
        busy = f"busy {scalars['busy_max']:.0%} of the time, the fastest {scalars['busy_min']:.0%}"
        parts.append(f"slowest process {slowest} on {hosts[slowest]} ({busy})")
    return "  ".join(parts)


def slow_process(scalars: Mapping[str, float]) -> int | None:
    """The index of the process whose host needs clearly more time than another's; None if all are alike."""
    apart = max(scalars.get(f"{name}_max", 0.0) - scalars.get(f"{name}_min", 0.0) for name in ("lost", "busy"))
    return int(scalars["slowest_process"]) if apart >= MOST_LOST else None

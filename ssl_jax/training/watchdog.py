"""A watchdog: ends a process that stands still, says which process of the run is the cause, and shows where it is."""

import contextlib
import dataclasses
import faulthandler
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping

import jax

from ssl_jax import dist
from ssl_jax.paths import AnyPath
from ssl_jax.stores import StoreError
from ssl_jax.training.timing import Activity
from ssl_jax.workdir import files

FIRST_STEP = 7200.0  # seconds that the first step of a start, or of an entry of config.mix, may take: it is compiled


@dataclasses.dataclass(frozen=True)
class Limits:
    """Seconds. stuck: without any progress; 0: for ever. The others follow, so that all fit into `stuck`."""

    stuck: float

    @property
    def every(self) -> float:
        """Between two heartbeats."""
        return min(5.0, self.stuck / 12) if self.stuck else 5.0

    @property
    def ask(self) -> float:
        """Without progress here, after which this process reads the heartbeats of the others."""
        return min(15.0, self.stuck / 8)

    @property
    def silent(self) -> float:
        """Without a heartbeat of another process, after which it counts as gone. JAX's own limit is later."""
        return min(90.0, self.stuck / 3)


class Sight:
    """What one process sees of the run, by its own clock. Clocks of other machines, and of the day, do not matter."""

    def __init__(self, limits: Limits, now: float):
        self._limits = limits
        self._step, self._stage, self._changes = 0, "", 0
        self._compiled = False  # whether the program of the step that it is at has been compiled
        self._progress = self._looked = now
        self._heard: dict[int, tuple[dist.Heartbeat, float]] = {}  # {process: (newest, since when it is known)}
        self._read = now  # when heartbeats were read the last time
        self._asked: float | None = None  # since when the coordination service owes an answer

    def look(self, activity: Activity, now: float) -> None:
        """Notes what this process does. Call it every `limits.every` seconds."""
        gap = now - self._looked - self._limits.every
        if gap > self._limits.every:  # this whole process stood still, stopped or without processor: nobody's fault
            self._progress += gap
            self._heard = {index: (beat, known + gap) for index, (beat, known) in list(self._heard.items())}
            self._asked = self._asked and self._asked + gap
        self._looked = now
        self._step, self._stage = activity.step, activity.stage
        self._compiled = activity.steps_done > 0 and not activity.compiling
        if activity.changes != self._changes:
            self._changes, self._progress = activity.changes, now

    def asking(self, now: float) -> None:
        self._asked = now

    def answered(self, beats: Mapping[int, dist.Heartbeat], now: float) -> None:
        """beats: {} if they were not asked for."""
        self._asked = None
        self._read = now if beats else self._read
        for index, beat in beats.items():
            if index not in self._heard or self._heard[index][0].number != beat.number:
                self._heard[index] = beat, now

    def wants_news(self, now: float) -> bool:
        return now - self._progress >= self._limits.ask

    def verdict(self, now: float) -> str:
        """Why this process cannot go on, naming the process that is the cause; "" if it can."""
        still, own = now - self._progress, jax.process_index()
        if still < self._limits.ask:
            return ""
        if self._asked is not None and now - self._asked > self._limits.silent:
            return f"{dist.NO_ANSWER} ({now - self._asked:.0f} s)"
        # Others are asked only while this process waits, so their silence counts from then on, up to the last reading.
        silence = {index: self._read - max(known, self._progress) for index, (_, known) in sorted(self._heard.items())}
        silent = [
            f"{dist.called(index, beat)} has ended ({beat.ended})"
            if beat.ended
            else f"{dist.called(index, beat)} {dist.GONE}: no heartbeat for {silence[index]:.0f} s, the last one at "
            f"step {beat.step} ({beat.stage})"
            for index, beat in self._beats().items()
            if index != own and (beat.ended or silence.get(index, 0.0) > self._limits.silent)
        ]
        if silent:
            return "; ".join(silent)
        if still <= (self._limits.stuck if self._compiled else max(self._limits.stuck, FIRST_STEP)):
            return ""
        return f"no progress for {still:.0f} s; {self._behind()}"

    def _beats(self) -> dict[int, dist.Heartbeat]:
        return {index: beat for index, (beat, _) in sorted(self._heard.items())}

    def _behind(self) -> str:
        step, stage = self._step, self._stage
        beats = self._beats()
        last = min((beat.step for beat in beats.values()), default=step)
        if len(beats) < 2:
            return f"this process is at step {step} ({stage})"
        if all(beat.step == last for beat in beats.values()):
            doing = ", ".join(f"{dist.called(index, beat)} ({beat.stage})" for index, beat in beats.items())
            return f"all processes are at step {last}: {doing}"
        behind = [f"{dist.called(i, beat)} ({beat.stage})" for i, beat in beats.items() if beat.step == last]
        here = "" if step == last else f"; this process is at step {step} ({stage})"
        return f"behind all others, at step {last}: {', '.join(behind)}{here}"


@contextlib.contextmanager
def watching(activity: Activity, workdir: AnyPath, seconds: float) -> Iterator[None]:
    """Within this context, a thread ends the process if its main thread makes no progress.

    That is, if for so many `seconds` no stage of a step, evaluation or checkpoint begins or ends. The first step, which
    is compiled, and that of each entry of config.mix, have at least two hours. With several processes also if another
    one has had no heartbeat for 90 s, or a third of `seconds`, while this one waits. Then the stacks of all threads go
    to stderr and to `workdir`/stacks-PROCESS.txt, with a sentence that names the cause, and the exit code is
    `dist.STUCK`. With 0 seconds the process is never ended.
    """
    limits, over = Limits(seconds), threading.Event()
    sight = Sight(limits, time.monotonic())
    threads = [threading.Thread(target=_tell, args=(activity, sight, limits, over), daemon=True, name="heartbeats")]
    if seconds:
        threads.append(
            threading.Thread(target=_judge, args=(activity, sight, limits, over, workdir), daemon=True, name="watchdog")
        )
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(1.0)  # not for ever: a heartbeat may wait for a process that is stopped


def _tell(activity: Activity, sight: Sight, limits: Limits, over: threading.Event) -> None:
    """Sends heartbeats and reads those of others. A thread of its own: both wait for ever if process 0 is stopped."""
    number = 0
    while jax.process_count() > 1 and not over.wait(limits.every):
        number += 1
        sight.asking(time.monotonic())
        with contextlib.suppress(RuntimeError):  # that the service is gone; JAX then ends this process
            dist.send_heartbeat(dist.Heartbeat(number, limits.every, activity.step, activity.stage))
            news = sight.wants_news(time.monotonic())
            sight.answered(dist.read_heartbeats() if news else {}, time.monotonic())


def _judge(activity: Activity, sight: Sight, limits: Limits, over: threading.Event, workdir: AnyPath) -> None:
    while not over.wait(limits.every):
        now = time.monotonic()
        sight.look(activity, now)
        if (why := sight.verdict(now)) and not over.is_set():
            end(why, workdir, limits)


def end(why: str, workdir: AnyPath, limits: Limits) -> None:
    """Shows all stacks and ends the process with `dist.STUCK`."""
    path = workdir / f"stacks-{jax.process_index()}.txt"
    stacks = all_stacks()
    print(stacks, file=sys.stderr, flush=True)
    # In a thread: the disk, or the store, may be what this process waits for.
    saved: list[AnyPath] = []
    saving = threading.Thread(target=_save, args=(path, f"{why}\n\n{stacks}", saved), daemon=True)
    saving.start()
    saving.join(5.0)
    also = "".join(f", and in {path}" for path in saved)
    print(
        f"error: {why}. The stacks of this process are above{also}. Exit code {dist.STUCK}: started again, the same "
        "command goes on from the newest checkpoint",
        file=sys.stderr,
        flush=True,
    )
    dist.say_ended(why)
    if dist.is_first() and jax.process_count() > 1:
        time.sleep(2 * limits.every)  # JAX aborts the others once process 0 is gone; they are to say what they see, too
    os._exit(dist.STUCK)  # the main thread cannot be interrupted


def _save(path: AnyPath, text: str, saved: list[AnyPath]) -> None:
    with contextlib.suppress(OSError, StoreError):  # of a full disk; the stacks are on stderr
        files.write(path, text)
        saved.append(path)


def all_stacks() -> str:
    """Where each thread of this process is, the newest call first."""
    names = "\n".join(f"Thread 0x{thread.ident or 0:016x}: {thread.name}" for thread in threading.enumerate())
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return f"{file.read().decode(errors='replace')}\n{names}\n"

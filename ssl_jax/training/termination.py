"""Stops a run when it is asked to stop."""

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(KeyboardInterrupt):
    """A run has stopped because it was asked to. The text says at which step its state is saved, if it is. A loop over
    runs stops, too."""


class Termination:
    """Within its context, the first SIGTERM or SIGINT (Ctrl-C) sets `requested`. A SIGINT after it interrupts at once.

    Outside of the main thread nothing changes: Python does not allow it there.
    """

    def __init__(self) -> None:
        self.requested = False
        self.signal = signal.SIGTERM.name  # as clusters send it, where another process of the run was asked
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Termination":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._request) for number in SIGNALS}
        return self

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested, self.signal = True, signal.Signals(number).name
        # Not print: the signal may have interrupted a print.
        os.write(2, f"{self.signal}: the state is saved after one of the next steps\n".encode())
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class Timer:
    """Tells whether `seconds` have passed since it was made or restarted. With 0 seconds they never have."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self.restart()

    def restart(self) -> None:
        self._start = time.monotonic()

    def passed(self) -> bool:
        return 0 < self._seconds <= time.monotonic() - self._start

"""What the processes of a run tell each other beside the training, through JAX's coordination service.

The service is a part of process 0. It answers as long as that process runs, whatever its main thread waits for.
"""

import dataclasses
import json
import platform
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax

# JAX has no public name for the client of its service. Orbax and others use this one.
from jax._src import distributed

R = TypeVar("R")
PREFIX = "ssl_jax/heartbeats/"
GONE = "has ended or was stopped, or its machine or network is down"
NO_ANSWER = f"process 0, through which the processes hear of each other, does not answer: it {GONE}"
LOST_OTHERS = "it lost other processes"  # why a process has ended that is not the cause


@dataclasses.dataclass(frozen=True)
class Heartbeat:
    """One sign of life of a process.

    number: counts up. seconds: until the next one. step, stage: what the process does. ended: why it has ended, or "".
    """

    number: int
    seconds: float
    step: int = 0
    stage: str = ""
    ended: str = ""
    host: str = dataclasses.field(default_factory=platform.node)


def send_heartbeat(beat: Heartbeat) -> None:
    """Tells the other processes. Does nothing in a process that is alone. May wait for ever if process 0 is stopped."""
    if client := _client():
        text = json.dumps(dataclasses.asdict(beat))
        client.key_value_set(f"{PREFIX}{jax.process_index()}", text, allow_overwrite=True)


def read_heartbeats() -> dict[int, Heartbeat]:
    """{index of a process: its newest heartbeat}, of those that have sent any. May wait as `send_heartbeat` does."""
    client: Any = _client()
    found = client.key_value_dir_get(PREFIX) if client else []
    return {int(key.rpartition("/")[2]): Heartbeat(**json.loads(value)) for key, value in found}


def say_ended(why: str) -> None:
    """Tells the other processes that this one ends, and why. Returns within a second or two."""
    beat = Heartbeat(number=-1, seconds=0.0, ended=why[:1000])
    _within(2.0, lambda: send_heartbeat(beat))


def find_ended() -> str:
    """A sentence for each process that has ended or has no more heartbeats; "" if there is none.

    Call it in a process that has lost the others. It waits until heartbeats are overdue, some 12 s.
    """
    first = _within(5.0, read_heartbeats)
    if first is None:
        return f"{NO_ANSWER}."
    own = jax.process_index()
    if not any(beat.ended for beat in first.values()):
        time.sleep(2.5 * max((beat.seconds for beat in first.values()), default=0.0))
    second = _within(5.0, read_heartbeats)
    if second is None:
        return f"{NO_ANSWER}."
    ended = {index: how for index, how in _ended(first, second).items() if index != own}
    return " ".join(f"{called(index, second[index])} {how}." for index, how in ended.items())


def _ended(first: Mapping[int, Heartbeat], second: Mapping[int, Heartbeat]) -> dict[int, str]:
    """{process: how it ended}, from two readings between which every process had the time for a heartbeat."""
    told = {index: f"has ended ({beat.ended})" for index, beat in second.items() if beat.ended}
    causes = {index: how for index, how in told.items() if second[index].ended != LOST_OTHERS}
    if causes:
        return causes  # the others may have had no time yet
    silent = [index for index, beat in second.items() if index in first and first[index].number == beat.number]
    return dict.fromkeys((index for index in silent if index not in told), GONE) or told


def called(index: int, beat: Heartbeat) -> str:
    return f"process {index} on {beat.host}"


def _client() -> Any:
    return distributed.global_state.client if jax.distributed.is_initialized() else None


def _within(seconds: float, call: Callable[[], R]) -> R | None:
    """The result of the call; None if it raises an error or takes longer, as it does where process 0 is stopped."""
    results: list[R] = []

    def work() -> None:
        try:
            results.append(call())
        except RuntimeError:  # that the service is gone
            return

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else None

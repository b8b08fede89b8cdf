"""What a process says of others that have ended; tests/dist/test_processes.py and test_stuck.py have real ones."""

import platform

import numpy as np
import pytest

from ssl_jax import dist
from ssl_jax.dist import heartbeats


def beat(number, ended="", host="b"):
    return dist.Heartbeat(number, 5.0, 10, "step", ended, host)


@pytest.fixture
def readings(monkeypatch):
    """What is read, one reading after the other, by process 0; and how long it waits."""
    given, waited = [], []
    monkeypatch.setattr(heartbeats, "read_heartbeats", lambda: given.pop(0))
    monkeypatch.setattr(heartbeats.time, "sleep", waited.append)
    return given, waited


@pytest.mark.parametrize(
    "second, expected",
    [
        ({0: beat(7), 1: beat(7)}, ""),
        ({0: beat(7), 1: beat(4)}, f"process 1 on b {dist.GONE}."),
        ({0: beat(4), 1: beat(7)}, ""),  # this process itself has stopped its heartbeats
        ({0: beat(7), 1: beat(-1, "error: no disk")}, "process 1 on b has ended (error: no disk)."),
        # Where one has said so, others that are late are no cause.
        ({0: beat(7), 1: beat(-1, "error: no disk"), 2: beat(4)}, "process 1 on b has ended (error: no disk)."),
        # A process that lost others is no cause, unless no other is known.
        ({0: beat(7), 1: beat(-1, heartbeats.LOST_OTHERS), 2: beat(4)}, f"process 2 on b {dist.GONE}."),
        ({0: beat(7), 1: beat(-1, heartbeats.LOST_OTHERS)}, "process 1 on b has ended (it lost other processes)."),
    ],
)
def test_a_process_that_has_ended_is_named(readings, second, expected):
    given, waited = readings
    given += [{0: beat(4), 1: beat(4), 2: beat(4)}, second]
    assert heartbeats.find_ended() == expected
    assert waited == [12.5]


def test_where_a_process_has_said_why_it_ended_nothing_is_waited_for(readings):
    given, waited = readings
    given += [{0: beat(4), 1: beat(-1, "error: no disk")}] * 2
    assert heartbeats.find_ended() == "process 1 on b has ended (error: no disk)."
    assert not waited


def test_without_heartbeats_nothing_is_known(readings):
    given, waited = readings
    given += [{}, {}]
    assert heartbeats.find_ended() == "" and waited == [0.0]


def test_a_service_that_is_gone_or_does_not_answer_is_process_0(monkeypatch):
    def gone():
        raise RuntimeError("UNAVAILABLE")

    monkeypatch.setattr(heartbeats, "read_heartbeats", gone)
    assert heartbeats.find_ended() == f"{dist.NO_ANSWER}."


def test_a_process_alone_sends_nothing_and_hears_nothing():
    dist.send_heartbeat(beat(1))
    assert dist.read_heartbeats() == {}


def test_the_numbers_of_a_process_alone_are_its_own():
    found = dist.everyones([0.5, 0.0, 3.25], dist.make_mesh())
    np.testing.assert_array_equal(found, [[0.5, 0.0, 3.25]])
    assert dist.hosts() == [platform.node()]

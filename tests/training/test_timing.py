"""Where the time between two logged steps went."""

import pytest

from ssl_jax.training import timing
from ssl_jax.training.timing import CHECKPOINT, EVALUATION, INPUT, Activity, Times


class Result:
    """Of a step, on a device that has finished it, or has not."""

    def __init__(self, ready):
        self._ready = ready

    def is_ready(self):
        return self._ready


@pytest.fixture
def clock(monkeypatch):
    seconds = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: seconds[0])
    return seconds


@pytest.mark.parametrize("idle, expected", [(True, (3.0, 1.0, 50.0, 0.0)), (False, (0.0, 0.0, 50.0, 0.0))])
def test_waiting_counts_only_where_the_devices_have_nothing_to_do(clock, idle, expected):
    activity = Activity()
    with activity.doing(EVALUATION):  # before it, all steps were waited for
        clock[0] += 50.0
    clock[0] += 1.0
    with activity.doing(INPUT):
        clock[0] += 3.0
    with activity.stepping(7, Result(ready=idle)):
        assert (activity.step, activity.stage) == (7, "step")
        clock[0] += 10.0
    taken = activity.take()
    assert (taken.input, taken.host, taken.evaluation, taken.checkpoint) == expected
    assert taken.whole == 64.0 and taken.busy == 4.0 and activity.steps_done == 1
    clock[0] += 2.0
    with activity.doing(CHECKPOINT):
        clock[0] += 4.0
    with activity.stepping(8, Result(ready=True)):
        pass
    assert activity.take() == Times(whole=6.0, busy=2.0, input=0.0, host=2.0, evaluation=0.0, checkpoint=4.0)


def times(busy, **lost):
    return Times(10.0, busy, **(dict(input=0.0, host=0.0, evaluation=0.0, checkpoint=0.0) | lost))


def test_shares_add_up_to_all_of_the_time():
    found = timing.shares(times(3.0, input=2.0, host=0.5, evaluation=1.0, checkpoint=0.5))
    assert found["goodput"] == pytest.approx(0.6)
    assert sum(found.values()) == pytest.approx(1.0)
    assert timing.described(found, [""]) == "goodput 60% (input 20%, host 5%, evaluation 10%, checkpoint 5%)"


def test_the_slowest_process_is_named_and_the_others_wait_for_it():
    here = times(0.5, input=0.5)
    found = timing.shares(here, [here, times(4.5, input=4.0, host=0.5), times(0.2)])
    assert found["goodput"] == pytest.approx(0.55) and found["time_others"] == pytest.approx(0.4)
    assert found["lost_min"] == 0.0 and found["lost_max"] == pytest.approx(0.45)
    assert found["slowest_process"] == 1
    expected = "goodput 55% (input 5%, others 40%)  slowest process 1 on b (busy 45% of the time, the fastest 2%)"
    assert timing.described(found, ["a", "b", "c"]) == expected


def test_a_slow_process_is_named_before_it_costs_anything():
    found = timing.shares(times(0.5), [times(0.5), times(6.0)])
    assert found["goodput"] == 1.0
    assert timing.described(found, ["a", "b"]) == "slowest process 1 on b (busy 60% of the time, the fastest 5%)"


def test_nothing_is_said_where_nearly_all_of_the_time_went_into_steps():
    even = times(0.3, input=0.2, host=0.1)
    found = timing.shares(even, [even, times(0.6, input=0.1)])
    assert timing.described(found, ["a", "b"]) == "" and timing.slow_process(found) is None

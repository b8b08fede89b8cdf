"""What the watchdog sees, by a clock of the test's; tests/dist/test_stuck.py has processes that are stopped."""

import subprocess
import sys
from pathlib import Path

import pytest

from ssl_jax import dist
from ssl_jax.training import watchdog
from ssl_jax.training.timing import INPUT, STEP, Activity
from ssl_jax.training.watchdog import FIRST_STEP, Limits, Sight
from tests.flags import environment

ROOT = Path(__file__).parents[2]
LIMITS = Limits(1800.0)


def beat(number, step, stage=STEP, host="a"):
    return dist.Heartbeat(number, LIMITS.every, step, stage, host=host)


class Watched:
    """A process, 0, and its clock, which goes on in steps of a heartbeat."""

    def __init__(self, limits=LIMITS, steps_done=True):
        self.activity, self.now, self.limits = Activity(), 1000.0, limits
        self.sight = Sight(limits, self.now)
        if steps_done:
            with self.activity.stepping(7):
                pass
        self.sight.look(self.activity, self.now)

    def wait(self, seconds, others=lambda now: {}):
        """The first verdict in so many seconds in which the main thread does nothing, and when it came."""
        end, start = self.now + seconds, self.now
        while self.now < end:
            self.now += self.limits.every
            self.sight.look(self.activity, self.now)
            if self.sight.wants_news(self.now):
                self.sight.answered(others(self.now), self.now)
            if verdict := self.sight.verdict(self.now):
                return verdict, self.now - start
        return "", seconds


def test_a_process_alone_is_ended_after_the_limit_and_says_what_it_did():
    watched = Watched()
    with watched.activity.doing(INPUT):
        verdict, after = watched.wait(4000.0)
    assert verdict == "no progress for 1805 s; this process is at step 7 (input)" and after == 1810.0


def test_progress_of_any_stage_begins_anew():
    watched = Watched()
    assert watched.wait(1700.0) == ("", 1700.0)
    with watched.activity.doing(INPUT):
        pass
    assert watched.wait(1700.0) == ("", 1700.0)


def test_the_first_step_has_time_to_be_compiled():
    watched = Watched(steps_done=False)
    verdict, after = watched.wait(2 * FIRST_STEP)
    assert "no progress" in verdict and FIRST_STEP < after < FIRST_STEP + 10


def test_a_step_of_a_new_program_has_time_to_be_compiled_and_the_next_has_not():
    watched = Watched()
    with watched.activity.stepping(8, compiling=True):
        assert watched.wait(2 * FIRST_STEP)[1] == FIRST_STEP + 10.0
    with watched.activity.stepping(9):
        assert watched.wait(4000.0)[1] == 1810.0


def test_a_silent_process_is_named_long_before_the_limit():
    alive = lambda now: {0: beat(int(now), 7), 1: beat(3, 6, host="b"), 2: beat(int(now), 7, host="c")}  # noqa: E731
    verdict, after = Watched().wait(1000.0, alive)
    assert verdict.startswith(
        "process 1 on b has ended or was stopped, or its machine or network is down: no heartbeat"
    )
    assert "at step 6 (step)" in verdict and "process 2" not in verdict
    assert LIMITS.silent < after < LIMITS.silent + LIMITS.ask + 3 * LIMITS.every < 150


@pytest.mark.parametrize(
    "steps, expected",
    [
        ((7, 5), "behind all others, at step 5: process 1 on b (input); this process is at step 7 (host)"),
        ((7, 7), "all processes are at step 7: process 0 on a (step), process 1 on b (input)"),
    ],
)
def test_where_all_are_alive_the_one_that_is_behind_is_named(steps, expected):
    others = lambda now: {0: beat(int(now), steps[0]), 1: beat(int(now), steps[1], INPUT, "b")}  # noqa: E731
    verdict, after = Watched().wait(3000.0, others)
    assert verdict == f"no progress for 1805 s; {expected}" and after == 1805.0


def test_a_process_that_said_why_it_ended_is_quoted():
    ended = dist.Heartbeat(-1, 0.0, ended="no progress for 1805 s", host="b")
    verdict, after = Watched().wait(60.0, lambda now: {0: beat(int(now), 7), 1: ended})
    assert verdict == "process 1 on b has ended (no progress for 1805 s)" and after < 30.0


def test_silence_in_an_earlier_wait_does_not_count():
    watched = Watched()
    assert watched.wait(60.0, lambda now: {0: beat(int(now), 7), 1: beat(3, 7)}) == ("", 60.0)
    watched.now += LIMITS.every
    with watched.activity.stepping(8):
        pass
    assert watched.wait(60.0, lambda now: {0: beat(int(now), 8), 1: beat(3, 8)}) == ("", 60.0)


def test_process_0_that_does_not_answer_is_named():
    watched = Watched()
    watched.sight.asking(watched.now)
    watched.sight.answered = lambda beats, now: None
    verdict, after = watched.wait(1000.0)
    assert verdict.startswith("process 0, through which") and "does not answer" in verdict
    assert LIMITS.silent < after < LIMITS.silent + LIMITS.ask


def test_time_in_which_this_process_was_stopped_itself_does_not_count():
    watched = Watched()
    alive = lambda now: {0: beat(int(now), 7), 1: beat(int(now), 7)}  # noqa: E731
    assert watched.wait(60.0, alive) == ("", 60.0)
    watched.now += 5000.0
    assert watched.wait(60.0, alive) == ("", 60.0)


@pytest.mark.parametrize("seconds", [10.0, 60.0, 1800.0])
def test_a_silent_process_is_found_and_left_within_the_limit(seconds):
    limits = Limits(seconds)
    silent = lambda now: {0: beat(int(now * 100), 7), 1: beat(3, 6)}  # noqa: E731
    verdict, after = Watched(limits).wait(seconds, silent)
    assert (
        verdict and after + 2 * limits.every <= seconds
    )  # process 0 stays for so long, so that others can say it, too


def test_without_a_limit_nothing_is_ended(tmp_path):
    activity = Activity()
    with watchdog.watching(activity, tmp_path, 0.0):
        assert Limits(0.0).every == 5.0
    assert not list(tmp_path.iterdir())


def test_a_process_that_stands_still_shows_its_stacks_and_ends(tmp_path):
    code = (
        "import sys, time, pathlib; from ssl_jax.training import timing, watchdog\n"
        "activity = timing.Activity()\n"
        "def stand_still(): time.sleep(100)\n"
        "with watchdog.watching(activity, pathlib.Path(sys.argv[1]), 1.0):\n"
        "    with activity.stepping(3): pass\n"
        "    with activity.doing(timing.INPUT): stand_still()\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == dist.STUCK == 70
    assert "in stand_still" in run.stderr and "MainThread" in run.stderr
    path = tmp_path / "stacks-0.txt"
    last = run.stderr.splitlines()[-1]
    assert last.startswith("error: no progress for ") and "at step 3 (input)" in last and str(path) in last
    assert "Exit code 70" in last and "same command goes on" in last
    assert "in stand_still" in path.read_text()


def test_stacks_that_cannot_be_saved_are_shown_all_the_same(tmp_path, monkeypatch, capsys):
    ended = []
    monkeypatch.setattr(watchdog.os, "_exit", ended.append)
    watchdog.end("no progress", tmp_path / "missing", LIMITS)
    assert ended == [70]
    printed = capsys.readouterr().err
    assert "test_stacks_that_cannot_be_saved" in printed and "error: no progress." in printed
    assert "are above. Exit code 70" in printed

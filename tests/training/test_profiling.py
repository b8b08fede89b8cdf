import pytest

from ssl_jax.config import ConfigError
from ssl_jax.training import profiling
from ssl_jax.training.profiling import Profile


def test_steps_to_profile_are_two_numbers():
    assert profiling.parse("") is None
    assert profiling.parse("20:25") == Profile(20, 25)
    assert profiling.parse("3:3") == Profile(3, 3)


@pytest.mark.parametrize("text", ["20", "20:", ":5", "5:4", "0:3", "a:b", "1:2:3", "-1:4", "1.0:2"])
def test_other_values_are_a_sentence(text):
    with pytest.raises(ConfigError, match=rf"--profile={text}: give START:STOP"):
        profiling.parse(text)


@pytest.mark.parametrize(
    "first, last, message", [(1, 9, "does steps 1 to 9"), (11, 40, "does steps 11 to 40"), (41, 40, "no steps left")]
)
def test_steps_that_this_start_does_not_do_are_a_sentence(first, last, message):
    profiling.check(Profile(10, 12), 10, 12)
    with pytest.raises(ConfigError, match=rf"--profile=10:12: this start of the run .*{message}"):
        profiling.check(Profile(10, 12), first, last)


def test_the_steps_are_traced_and_the_place_is_said(tmp_path, capsys):
    settled = []
    steps = profiling.traced(range(1, 6), Profile(2, 3), tmp_path / "profile", lambda: settled.append(seen[-1]))
    seen = []
    for step in steps:
        seen.append(step)
    assert seen == [1, 2, 3, 4, 5] and settled == [1, 3]
    traces = list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert len(traces) == 1 and traces[0].stat().st_size > 0
    printed = capsys.readouterr().out
    assert f"steps 2 to 3 are profiled in {tmp_path / 'profile'}" in printed and "xprof --logdir" in printed


def test_a_run_that_ends_within_the_steps_leaves_its_trace(tmp_path):
    def run():
        for step in profiling.traced(range(1, 6), Profile(2, 5), tmp_path / "profile", lambda: None):
            if step == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_trace_that_cannot_be_written_does_not_end_the_run(tmp_path, caplog):
    (tmp_path / "profile").write_text("a file where the directory would be")
    assert list(profiling.traced(range(1, 5), Profile(2, 3), tmp_path / "profile", lambda: None)) == [1, 2, 3, 4]
    assert f"the profile could not be written to {tmp_path / 'profile'}" in caplog.text

"""benchmarks/accelerator.py: stages with stand-ins, and with tiny sizes on the CPU."""

import json
import os
import time

import pytest

from benchmarks import accelerator
from tests.flags import environment

STAND_INS = """import subprocess, sys, time
name = sys.argv[1]
if name == "platform":
    print("noise")
    print('{"well": true, "memory": 7}')
elif name == "tests":
    sys.exit("broken")
elif name == "losses":
    subprocess.Popen(["sleep", "1000"])  # holds the output open
    print('{"well": true, "half": 1}', flush=True)
    time.sleep(1000)
"""


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    path = tmp_path / "stages.py"
    path.write_text(STAND_INS)
    monkeypatch.setattr(accelerator, "STAGES", path)
    monkeypatch.setattr(accelerator, "LIMITS", {"platform": 20, "tests": 20, "losses": 2})


def test_a_stage_that_fails_or_hangs_does_not_stop_the_others(stand_ins, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    begun = time.monotonic()
    assert accelerator.main(["--only", "losses", "tests", "platform", "--out", str(out)]) == 1
    assert time.monotonic() - begun < 20
    hangs, fails, works = map(json.loads, capsys.readouterr().out.splitlines())
    assert (hangs["well"], hangs["half"], hangs["problem"]) == (False, 1, "not finished after 2 s")
    assert (fails["well"], fails["problem"], fails["output"]) == (False, "exit code 1", ["broken"])
    assert (works["stage"], works["well"], works["memory"]) == ("platform", True, 7)
    assert [json.loads(line) for line in out.read_text().splitlines()] == [hangs, fails, works]
    assert accelerator.main(["--only", "platform"]) == 0


def test_all_stages_take_ten_minutes_at_most():
    assert sum(accelerator.LIMITS.values()) <= 600


@pytest.mark.slow
@pytest.mark.parametrize("stage", accelerator.LIMITS)
def test_stages_on_a_cpu(stage):
    given = environment(JAX_PLATFORMS="cpu")
    found = accelerator.run_stage(stage, 1200.0, tiny=True, environment={**os.environ, **given})
    assert found["well"], found
    for key in {
        "platform": ("devices", "product_tflops"),
        "tests": ("passed", "skipped"),
        "losses": ("largest_difference",),
        "simclr": ("images_per_second", "gflops", "program_memory"),
        "vit": ("rows", "skipped"),
        "input": ("images_per_second", "limit"),
        "end_to_end": ("images_per_second", "share_of_waiting"),
        "profile": ("bytes",),
        "resume": ("went_on_from", "same_bytes"),
    }[stage]:
        assert key in found, found

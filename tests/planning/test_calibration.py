import json

import pytest

from ssl_jax import config as configs
from ssl_jax.cli import plan as plan_command
from ssl_jax.planning import calibration, places
from ssl_jax.workdir import config_file

PLACE = places.parse_place("8xH100")
PLAN = {
    "topology": "8xH100", "method": "simclr", "model": "resnet50", "compute_dtype": "bfloat16", "batch_size": 1024,
    "commit": "abc", "steps": 7200,
    "estimate": {"step_seconds": {"fastest": 0.05, "slowest": 0.06}, "compute_seconds": 0.03},
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """(devices, images/s of each interval) -> the directory of a run of 1,024 images a step."""

    def make(devices="8 x NVIDIA H100 80GB HBM3 (gpu)", speeds=(9000.0, 5120.0, 5120.0, 5000.0, 5120.0), wait=0.5):
        config = configs.get_config("simclr:tiny")
        config.batch_size = 1024
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        (folder / config_file.NAME).write_text(configs.dumps(config))
        (folder / "run.json").write_text(json.dumps({"devices": devices}))
        lines = [{"step": 1}, *({"step": 2, "images_per_second": speed, "data_wait": wait} for speed in speeds)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder

    return make


def test_a_run_says_how_far_its_steps_were_from_the_plan(run):
    found = calibration.entry(run(), PLACE, PLAN)
    assert found["measured_seconds"] == pytest.approx(0.1)  # 0.2 s a step, half of it waiting for images
    assert (found["factor"], found["utilization"]) == (pytest.approx(2.0), pytest.approx(0.3))
    assert (found["chip"], found["waiting"], found["topology"]) == ("H100", 0.5, "8xH100")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"speeds": (1.0, 2.0)}, "logged the speed of 2 intervals, and 3 are wanted"),
        ({"devices": "8 x cpu (cpu)"}, "it ran on 8 x cpu"),
        ({"devices": "4 x NVIDIA H100 80GB HBM3 (gpu)"}, "it ran on 4 x NVIDIA H100"),
    ],
)
def test_runs_that_measure_nothing_are_refused(run, options, message):
    with pytest.raises(configs.ConfigError, match=message):
        calibration.entry(run(**options), PLACE, PLAN)


def test_later_plans_use_the_runs_on_their_chip(tmp_path):
    path = tmp_path / "calibration.json"
    common = {"topology": "8xH100", "chip": "H100", "compute_dtype": "bfloat16"}
    for new in (
        {**common, "run": "a", "factor": 9.0},
        {**common, "run": "a", "factor": 1.0},  # in place of the one before
        {**common, "run": "b", "factor": 4.0},
        {**common, "run": "c", "factor": 7.0, "compute_dtype": "float32"},
        {**common, "run": "d", "factor": 8.0, "chip": "L4"},
    ):
        calibration.add(path, new)
    entries = calibration.read(path)
    assert len(entries) == 4
    found = calibration.calibrated(PLAN, PLACE, entries)
    assert (found["factor"], found["runs"]) == (pytest.approx(2.0), 2)  # of 1 and 4
    assert (found["step_seconds"], found["utilization"]) == (pytest.approx(0.1), pytest.approx(0.3))
    assert (found["hours"], found["chip_hours"]) == (pytest.approx(0.2), pytest.approx(1.6))
    in_float32 = calibration.calibrated({**PLAN, "compute_dtype": "float32"}, PLACE, entries)
    assert in_float32["factor"] == pytest.approx(7.0)
    assert calibration.calibrated({**PLAN, "compute_dtype": "float16"}, PLACE, entries)["runs"] == 3
    assert calibration.calibrated(PLAN, places.parse_place("8xB200"), entries) is None


@pytest.mark.parametrize("text", ["", "{}x", '[{"chip": "H100"}]', '[{"chip": "H100", "factor": 0}]', "[3]"])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "calibration.json"
    path.write_text(text)
    with pytest.raises(configs.ConfigError, match="no file of ssl_jax plan --calibrate"):
        calibration.read(path)


def test_the_command_adds_a_run_to_the_file(run, tmp_path, monkeypatch, capsys):
    path = tmp_path / "calibration.json"
    monkeypatch.setattr(plan_command, "plan", lambda config, place: PLAN | {"batch_size": config.batch_size})
    plan_command.main([f"--calibrate={run()}", "--topology=8xH100", f"--calibration={path}"])
    (added,) = json.loads(path.read_text())
    assert added["factor"] == pytest.approx(2.0)
    assert "a step took 100 ms" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--topology=8xH100"], ["--calibration=c.json"], []])
def test_the_command_wants_the_devices_and_a_file(run, arguments):
    with pytest.raises(SystemExit, match="wants the --topology that it ran on, and a --calibration=FILE"):
        plan_command.main([f"--calibrate={run()}", *arguments])

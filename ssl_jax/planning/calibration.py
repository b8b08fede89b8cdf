"""How long real steps took beside what was planned for them: a JSON file of runs, which later plans use."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssl_jax import config as configs
from ssl_jax.planning.places import Place
from ssl_jax.workdir import facts, files
from ssl_jax.workdir.config_file import read_config
from ssl_jax.workdir.metrics import read_metrics

LEAST = 3  # intervals between logged steps whose median is a measure


def measured_step(run: Path) -> dict[str, Any]:
    """Of a run in this directory: "measured_seconds", the median of a step without its wait for images; "waiting", the
    median share of that wait, in 0..1; "devices", as its run.json has them.

    Raises: ConfigError if it logged too few speeds.
    """
    logged = [metrics for metrics in read_metrics(run / "metrics.jsonl") if metrics.get("images_per_second")]
    if len(logged) < LEAST:
        raise configs.ConfigError(
            f"--calibrate={run}: it has logged the speed of {len(logged)} intervals, and {LEAST} are wanted; train "
            "longer, or set --config.log_every lower"
        )
    batch_size = read_config(run).batch_size
    seconds = [batch_size * (1.0 - one["data_wait"]) / one["images_per_second"] for one in logged]
    return {
        "measured_seconds": statistics.median(seconds),
        "waiting": statistics.median(one["data_wait"] for one in logged),
        "devices": facts.read(run)["devices"],
    }


def entry(run: Path, place: Place, plan: Mapping[str, Any]) -> dict[str, Any]:
    """The run beside `plan`, that of its config for `place`.

    "factor": the measured seconds of a step, over those of the fastest planned. "utilization": the share of the peak
    arithmetic that its steps reached, in 0..1.
    Raises: ConfigError if the run had another number of devices, or ran on CPUs.
    """
    found = measured_step(run)
    if found["devices"].endswith("(cpu)") or int(found["devices"].split(" x ")[0]) != place.chips:
        raise configs.ConfigError(
            f"--calibrate={run}: it ran on {found['devices']}, and --topology is {place.name}; give what it ran on"
        )
    planned = plan["estimate"]
    return {
        "run": str(run.resolve()),
        "chip": place.chip.name,
        **{key: plan[key] for key in ("topology", "method", "model", "compute_dtype", "batch_size", "commit")},
        **found,
        "planned_seconds": planned["step_seconds"]["fastest"],
        "factor": found["measured_seconds"] / planned["step_seconds"]["fastest"],
        "utilization": planned["compute_seconds"] / found["measured_seconds"],
    }


def read(path: Path) -> list[dict[str, Any]]:
    """The entries of the file. Raises: ConfigError if it cannot be read as such."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(one["chip"], str) and float(one["factor"]) > 0 for one in entries):
            raise ValueError("an entry has no chip, or no factor above 0")
        return entries
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise configs.ConfigError(
            f"--calibration={path}: it is no file of ssl_jax plan --calibrate ({error})"
        ) from error


def add(path: Path, new: Mapping[str, Any]) -> None:
    """Adds an entry to the file, in place of one of the same run on the same devices."""
    entries = read(path) if path.exists() else []
    kept = [one for one in entries if (one.get("run"), one.get("topology")) != (new["run"], new["topology"])]
    files.write(path, json.dumps([*kept, new], indent=1) + "\n")


def calibrated(plan: Mapping[str, Any], place: Place, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What to expect of a plan's steps: the fastest planned, times the geometric mean of the factors of the runs on the
    same chip; of those with the plan's compute_dtype, if there are some. None without such runs."""
    runs = [one for one in entries if one["chip"] == place.chip.name]
    runs = [one for one in runs if one.get("compute_dtype") == plan["compute_dtype"]] or runs
    if not runs:
        return None
    factor = math.exp(statistics.fmean(math.log(one["factor"]) for one in runs))
    seconds = factor * plan["estimate"]["step_seconds"]["fastest"]
    hours = plan["steps"] * seconds / 3600
    return {
        "factor": factor,
        "runs": len(runs),
        "step_seconds": seconds,
        "utilization": plan["estimate"]["compute_seconds"] / seconds,
        "hours": hours,
        "chip_hours": place.chips * hours,
    }

"""ssl_jax plan --config simclr:imagenet_r50 --topology v5e:16x16 [--search] [--json FILE]: see planning/plan.py.
ssl_jax plan --calibrate RUN --topology 8xH100 --calibration FILE

The second measures the steps of a run against the plan of its config, and adds them to FILE. With --calibration FILE,
later plans say what to expect.
"""

import json
import sys
from pathlib import Path

from ssl_jax import config as configs
from ssl_jax.cli.flags import PLATFORM, check_file, on_disk, read_flags, start_devices, user_errors
from ssl_jax.planning import calibration
from ssl_jax.planning.gpus import GPUS
from ssl_jax.planning.places import parse_place
from ssl_jax.planning.plan import plan, search
from ssl_jax.planning.show import print_calibration, print_plan
from ssl_jax.training.config_keys import of_sections
from ssl_jax.workdir.config_file import read_config
from ssl_jax.workdir.metrics import MetricsError


def main(argv: list[str] | None = None) -> None:
    with user_errors(MetricsError):
        arguments = sys.argv[1:] if argv is None else argv
        of_a_run = any(argument.lstrip("-").partition("=")[0] == "calibrate" for argument in arguments)
        flags = read_flags(
            arguments,
            program="ssl_jax plan: what a run needs and costs, before it is run",
            sections=None if of_a_run else of_sections,
            switches={"search": "if the run does not fit, try changes until it does"},
            strings={
                "topology": (
                    "a slice of TPUs, such as v5e:16x16 or v5litepod-256 (v4, v5e, v5p, v6e), or GPUs, such as 8xH100 "
                    f"({', '.join(GPUS)}); default: the devices of this machine"
                ),
                "calibrate": "directory of a run on the devices of --topology, in place of --config: adds its steps to "
                "--calibration",
                "calibration": "JSON file of what steps took; the plan says what to expect by it",
                "json": "JSON file for the plan",
                **PLATFORM,
            },
        )
        if flags.json:
            check_file("json", on_disk("json", flags.json))
        place = configs.call(parse_place, {}, "--topology", flags.topology) if flags.topology else None
        known = on_disk("calibration", flags.calibration) if flags.calibration else None
        if of_a_run:
            if not (flags.calibrate and place and known):
                raise configs.ConfigError(
                    "--calibrate=RUN wants the --topology that it ran on, and a --calibration=FILE"
                )
            check_file("calibration", known)
            run = on_disk("calibrate", flags.calibrate)
            calibration.measured_step(run)  # before the plan, which takes minutes
            result = plan(read_config(run), place)
            added = calibration.entry(run, place, result)
            calibration.add(known, added)
            print_calibration(added)
            return
        entries = calibration.read(known) if known else []
        if place is None:
            start_devices(flags.platform)
        result = (search if flags.search else plan)(flags.config, place)
        if place and "estimate" in result and (expected := calibration.calibrated(result, place, entries)):
            result["estimate"]["calibrated"] = expected
        print_plan(result)
        if flags.json:
            Path(flags.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")

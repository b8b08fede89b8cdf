"""ssl_jax plan --config simclr:imagenet_r50 --topology v5e:16x16 [--search] [--json FILE]: see planning/plan.py."""

import json
import sys
from pathlib import Path

from ssl_jax import config as configs
from ssl_jax.cli.flags import check_file, on_disk, read_flags, user_errors
from ssl_jax.planning.chips import parse_slice
from ssl_jax.planning.plan import plan, search
from ssl_jax.planning.show import print_plan
from ssl_jax.training.config_keys import of_sections


def main(argv: list[str] | None = None) -> None:
    with user_errors():
        flags = read_flags(
            sys.argv[1:] if argv is None else argv,
            program="ssl_jax plan: what a run needs and costs, before it is run",
            sections=of_sections,
            switches={"search": "if the run does not fit, try changes until it does"},
            strings={
                "topology": (
                    "a slice of TPUs, such as v5e:16x16 or v5litepod-256 (v4, v5e, v5p, v6e); "
                    "default: the devices of this machine"
                ),
                "json": "JSON file for the plan",
            },
        )
        if flags.json:
            check_file("json", on_disk("json", flags.json))
        place = configs.call(parse_slice, {}, "--topology", flags.topology) if flags.topology else None
        result = search(flags.config, place) if flags.search else plan(flags.config, place)
        print_plan(result)
        if flags.json:
            Path(flags.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")

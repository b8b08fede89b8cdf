"""Plans of the methods' ImageNet configs: python benchmarks/plans.py [--topology v5e:16x16] [--only simclr mae]

Each is compiled by a `ssl_jax plan` of its own (3 to 10 minutes on an idle core; libtpu must be installed),
and kept in docs/plans.json, so that a second start goes on where the first was, but for rows that do not fit and are
now to be searched, or with --again. Then writes docs/plans.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ssl_jax.configs import NAMES, scales
from ssl_jax.planning.remedies import spelled
from ssl_jax.planning.show import STATE, size

ROOT = Path(__file__).parents[1]
RESULTS, TABLE = ROOT / "docs" / "plans.json", ROOT / "docs" / "plans.md"

HEAD = """# Plans

What the ImageNet configs need of each chip, and at least cost, as `ssl_jax plan` finds without a TPU or a GPU: the
step is compiled for the slice by libtpu, the TPU compiler (`pip install "jax[tpu]"`), or for GPUs by the compiler in
JAX's plugin (`pip install --no-deps jax-cuda12-pjrt jax-cuda12-plugin`, of the version of JAX). Made by
`python benchmarks/plans.py`, which goes on where it was; `docs/plans.json` has all figures, the collectives by line of
our code, and the assumptions.

Memory is of one chip. Activations: kept for the gradient, as far as they can be told; temporaries: the rest. Sent: by
each chip in a step. Step time and chip-hours are lower bounds, from collectives all hidden behind the arithmetic to
none; the utilization is that of the faster. Where a config does not fit, the compiler says how much memory it
needs in all, and no more. Commit: of the code whose step was compiled.

On GPUs, the FLOPs are those of products and convolutions alone, and kernels were not tried on a card. Memory, FLOPs and
what is sent are computed from the compiled program; times are estimates from the data sheets' rates.

"""
COLUMNS = (
    "config", "on", "images a step", "fits", "memory", "state", "activations", "temporaries", "GFLOP", "sent",
    "step, ms", "bound by", "utilization", "chip-hours", "commit",
)  # fmt: skip


def imagenet_configs() -> list[str]:
    """ "simclr:imagenet_r50" of each config's scales."""
    return [f"{name}:{scale}" for name in NAMES for scale in scales(name) if scale.startswith("imagenet")]


def row(name: str, plan: dict) -> str:
    memory = plan["memory"]
    state = sum(memory[part] for part in STATE)
    changes = plan.get("changes", {})
    cells = [
        f"`{name} {spelled(changes)}`" if changes else f"`{name}`", plan["topology"],
        f"{plan['batch_size']:,}", "yes" if plan["fits"] else "**no**",
        f"{size(memory['needed'])} of {size(memory['limit'])}", size(state),
        size(memory["activations"]) if "activations" in memory else "", size(memory["temporaries"]),
    ]  # fmt: skip
    if "estimate" in plan:
        found = plan["estimate"]
        both = lambda values, spec: " to ".join(format(values[k], spec) for k in ("fastest", "slowest"))  # noqa: E731
        sent = sum(entry["sent"] for entry in plan["collectives"] if entry["each_step"])
        cells += [
            f"{plan['flops'] / 1e9:,.0f}", size(sent),
            both({k: 1e3 * v for k, v in found["step_seconds"].items()}, ".1f"), found["bound"],
            f"{found['utilization']['fastest']:.0%}", both(found["chip_hours"], ",.0f"),
        ]  # fmt: skip
    else:
        cells += [""] * (len(COLUMNS) - 1 - len(cells))
    return line([*cells, plan["commit"]])


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def write(plans: dict) -> None:
    RESULTS.write_text(json.dumps(plans, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    text = HEAD + line(COLUMNS) + line(["---"] * len(COLUMNS))
    text += "".join(row(key.split()[0], plan) for key, plan in sorted(plans.items()))
    for key, plan in sorted(plans.items()):
        if plan["advice"]:
            text += f"\n`{key}` does not fit. Told so, it is to try: {'; '.join(plan['advice'])}.\n"
        if len(plan.get("tried", [])) > 1:
            tried = (f"{spelled(one['changes']) or 'as it is'}: {size(one['needed'])}" for one in plan["tried"])
            text += f"\n`{key}`, with --search: {'; '.join(tried)}.\n"
    TABLE.write_text(text, encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:16x16")
    parser.add_argument("--only", nargs="*", default=[], help="methods, or METHOD:SCALE; all if not given")
    parser.add_argument("--batch_size", type=int, help="in place of the config's")
    parser.add_argument("--search", action="store_true", help="tries changes of those that do not fit until they do")
    parser.add_argument("--again", action="store_true", help="makes rows that there are once more")
    arguments = parser.parse_args()
    plans = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in imagenet_configs():
        key, (method, scale) = f"{name} {arguments.topology}", name.split(":")
        key += f" {arguments.batch_size}" if arguments.batch_size else ""
        if arguments.only and not {method, name} & set(arguments.only):
            continue
        to_search = arguments.search and key in plans and not plans[key]["fits"] and "tried" not in plans[key]
        if key in plans and not (arguments.again or to_search):
            continue
        print(f"{key} ...", flush=True)
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "plan.json"
            config = f"--config={method}:{scale}"
            command = [sys.executable, "-m", "ssl_jax", "plan", config, f"--topology={arguments.topology}"]
            command += [f"--config.batch_size={arguments.batch_size}"] if arguments.batch_size else []
            command += ["--search"] if arguments.search else []
            if subprocess.run([*command, f"--json={path}"], check=False).returncode:
                print(f"{key}: no plan; see above", flush=True)
                continue
            plans[key] = json.loads(path.read_text())
        write(plans)
    write(plans)


if __name__ == "__main__":
    main()

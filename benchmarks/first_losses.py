"""The losses of every method's first steps at its `tiny` scale, to show that a change of the code changed none.

    python benchmarks/first_losses.py record before.json [--methods simclr,mae]      # at the commit before
    python benchmarks/first_losses.py compare before.json                            # at the commit after

Uses the command `ssl_jax train` alone, so that it can be copied into any version that has it. `record` adds to its
file method by method, and goes on where it was stopped. `compare` prints the largest relative difference of each
method's losses, and exits with 1 where one is above 1e-6.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
STEPS = 5
TOLERANCE = 1e-6


def first_losses(name: str) -> list[float]:
    """The losses of steps 1 to STEPS of a run that ends there."""
    with tempfile.TemporaryDirectory() as workdir:
        options = [f"--config.{key}" for key in (f"steps={STEPS}", "log_every=1", "evaluate_every=0")]
        command = [sys.executable, "-m", "ssl_jax", "train", "--config", f"{name}:tiny", *options, "--workdir", workdir]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if run.returncode:
            sys.exit(f"{name}:\n{run.stdout}\n{run.stderr}")
        lines = (Path(workdir) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def record(path: Path, names: list[str]) -> None:
    found = json.loads(path.read_text()) if path.exists() else {}
    for name in names:
        if name not in found:
            found[name] = first_losses(name)
            path.write_text(json.dumps(found, indent=1))
            print(f"{name:16} {' '.join(f'{loss:.6f}' for loss in found[name])}", flush=True)


def compare(path: Path, names: list[str]) -> bool:
    """Whether all are equal."""
    before, equal = json.loads(path.read_text()), True
    for name in names:
        after = first_losses(name)
        worst = max(abs(a - b) / max(abs(b), 1e-30) for a, b in zip(after, before[name], strict=True))
        equal &= worst <= TOLERANCE
        print(
            f"{name:16} {worst:.1e}{'' if worst <= TOLERANCE else f'  differs: {before[name]} -> {after}'}", flush=True
        )
    return equal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=("record", "compare"))
    parser.add_argument("path", type=Path)
    parser.add_argument("--methods", help="with commas; all if not given")
    arguments = parser.parse_args()
    every = sorted(path.stem for path in (ROOT / "ssl_jax" / "configs").glob("[!_]*.py"))
    names = arguments.methods.split(",") if arguments.methods else every
    if arguments.mode == "record":
        record(arguments.path, names)
    elif not compare(arguments.path, names):
        sys.exit(1)


if __name__ == "__main__":
    main()

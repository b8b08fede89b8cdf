"""What ssl_jax does on one GPU or TPU, in at most ten minutes: python benchmarks/accelerator.py [--only STAGE ...]

    python benchmarks/accelerator.py --out accelerator.jsonl       # on the accelerator
    python benchmarks/accelerator.py --tiny --platform cpu         # the same stages with tiny sizes, on a CPU
    python benchmarks/accelerator.py --record                      # on a CPU: the losses that others are compared with

Each stage of benchmarks/accelerator_stages.py runs in a process of its own, with a time limit of its own, and prints
one JSON line: its name, whether it is well, the seconds that it took, and what it measured or the end of its output. A
stage that fails or hangs does not stop the others. Exits with 1 if one is not well.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
STAGES = Path(__file__).with_name("accelerator_stages.py")
# Stage -> seconds that it may take, 600 in all.
LIMITS = {
    "platform": 30,
    "tests": 80,
    "losses": 70,
    "simclr": 90,
    "vit": 130,
    "input": 50,
    "end_to_end": 60,
    "profile": 30,
    "resume": 60,
}
SLOWER = 4  # times the limits of a CPU, which compiles more slowly
PLATFORMS = {"": "", "cpu": "cpu", "gpu": "cuda,cpu", "tpu": "tpu,cpu"}


def run_stage(name: str, limit: float, *, tiny: bool, environment: dict[str, str]) -> dict[str, Any]:
    """The stage's JSON line."""
    command = [sys.executable, str(STAGES), name, *(["--tiny"] if tiny else [])]
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [*command, "--folder", folder],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=limit)
            problem = f"exit code {process.returncode}" if process.returncode else ""
        except subprocess.TimeoutExpired:
            problem = f"not finished after {limit:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and the processes that it has started
        if problem.startswith("not"):
            output, _ = process.communicate()
    *before, last = output.splitlines() or [""]
    found: dict[str, Any] = {"stage": name, "well": False, "seconds": round(time.perf_counter() - begun, 1)}
    with contextlib.suppress(ValueError):
        found |= json.loads(last)  # also of a stage that measured a part and was then stopped
    if problem:
        found |= {"well": False, "problem": problem, "output": [*before, last][-15:]}
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="*", choices=LIMITS, default=list(LIMITS), metavar="STAGE", help=", ".join(LIMITS)
    )
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, for a CPU")
    parser.add_argument("--platform", choices=PLATFORMS, default="", help="default: what JAX takes")
    parser.add_argument("--seconds", type=float, default=0.0, help="for all stages; default: 600, with --tiny no limit")
    parser.add_argument("--out", type=Path, help="file that the lines are added to")
    parser.add_argument("--record", action="store_true", help="stores the losses of this machine's CPU")
    arguments = parser.parse_args(argv)
    platform = "cpu" if arguments.record else arguments.platform
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    environment |= {"JAX_PLATFORMS": PLATFORMS[platform]} if platform else {}
    if arguments.record:
        environment["RECORD"] = "yes"
        arguments.only = ["losses"]
    slower = SLOWER if arguments.tiny or arguments.record else 1
    left = arguments.seconds or slower * sum(LIMITS.values())
    well = True
    for name in arguments.only:
        limit = min(slower * LIMITS[name], left)
        found = run_stage(name, limit, tiny=arguments.tiny, environment=environment)
        left = max(left - found["seconds"], 1.0)
        well &= found["well"]
        line = json.dumps(found)
        print(line, flush=True)
        if arguments.out:
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())

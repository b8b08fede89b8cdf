"""The time from `ssl_jax train` to the first printed step, of one or several versions of the code, alternately.

    git worktree add ../before COMMIT
    python benchmarks/start_time.py ../before . [--config simclr:tiny] [--rounds 5]

The first start of each version only fills the compilation cache. Of the others, it prints the medians over the rounds
of wall-clock and processor time (user and system), in seconds, and their ratios to the first version's. Each start has
a new workdir and is ended when its first step is printed.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def start(root: Path, config: str) -> tuple[float, float]:
    """(wall-clock, processor) seconds from the start of the command to its first printed step."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "-m", "ssl_jax", "train", "--config", config, "--workdir", workdir]
        environment = {**os.environ, "PYTHONPATH": str(root.resolve())}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # else every start would compile the project's code
        begun = time.perf_counter()
        run = subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert run.stdout is not None
        printed = any(re.match(rb"step +1/", line) for line in run.stdout)
        seconds = time.perf_counter() - begun
        run.kill()
        _, _, used = os.wait4(run.pid, 0)
        if not printed:
            sys.exit(f"{' '.join(command)} in {root} ended before its first step")
    return seconds, used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", type=Path, nargs="+")
    parser.add_argument("--config", default="simclr:tiny")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    for root in given.roots:
        start(root, given.config)
    rounds = [[start(root, given.config) for root in given.roots] for _ in range(given.rounds)]
    found = np.array(rounds)  # [rounds, versions, wall-clock and processor]
    ratios = np.median(found / found[:, :1], axis=0)
    for root, (wall, used), (of_wall, of_used) in zip(given.roots, np.median(found, axis=0), ratios, strict=True):
        print(f"{root}: {wall:.2f} s, of the processor {used:.2f} s; ratios {of_wall:.2f} and {of_used:.2f}")
    for number, one in enumerate(found, start=1):
        print(f"round {number}: " + "; ".join(f"{wall:.2f} s, {used:.2f} s" for wall, used in one))


if __name__ == "__main__":
    main()

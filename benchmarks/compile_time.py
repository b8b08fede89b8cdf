"""The processor time from nothing to the end of the first step, of each method's `tiny` scale, without any cache.

    python benchmarks/compile_time.py measure found.json [--methods simclr,mae]      # all methods if not given
    git worktree add ../before COMMIT
    python benchmarks/compile_time.py compare ../before . [--methods simclr,mae] [--rounds 3]

Each measurement is a process of its own that makes what a run makes: the state, the pass before training where a method
has one (compiled, not run), the train step, and STEPS steps. Processor time, since XLA compiles in several threads and
others may use the machine. The online kNN is left out: no run needs it before its first step is done. So are
methods that need a trained network (GIVEN in methods_worlds.py), if no methods are given.

`measure` adds to its file method by method, goes on where it was stopped, and prints all, the slowest first. `compare`
lets two versions take turns, and prints medians, their ratios, and the largest relative difference of the losses.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

STEPS = 6
PARTS = ("state", "tracing", "compiling", "prepare", "first step")  # of the total, in seconds
Found = dict[str, Any]
Made = TypeVar("Made")


def measure_one(name: str) -> Found:
    """Seconds of processor time for each of PARTS, of one later step, and the losses, in this process."""
    import jax
    import numpy as np

    from ssl_jax import config as configs
    from ssl_jax import dist, get_config
    from ssl_jax.training import build, reading
    from ssl_jax.training.loop import read_batches
    from ssl_jax.training.measuring import measured_with_images

    seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)

    def timed(part: str, make: Callable[[], Made]) -> Made:
        begun = time.process_time()
        made = jax.block_until_ready(make())
        seconds[part] += time.process_time() - begun
        return made

    given, source = measured_with_images(get_config(f"{name}:tiny"), None, None)
    config = configs.parse(given)
    source = reading.whole_source(config) if source is None else source
    training = build.training(config, build.schedule(config, len(source), len(source.class_names)))
    batches, mesh = read_batches(config, source, training, seed=config.seed), dist.make_mesh()
    read = [dist.shard_batch(next(batches), mesh) for _ in range(STEPS)]
    state = timed("state", lambda: dist.create_state(training.create_state, mesh))
    if training.prepare is not None:
        prepare = dist.map_step(training.prepare, mesh)
        timed("prepare", lambda: prepare.lower(state, read[0]).compile())
    mapped = dist.map_step(training.step, mesh)
    lowered = timed("tracing", lambda: mapped.lower(state, read[0]))
    step = timed("compiling", lowered.compile)
    state, metrics = timed("first step", lambda: step(state, read[0]))
    losses, later = [float(metrics["loss"])], []
    for batch in read[1:]:
        begun = time.process_time()
        state, metrics = jax.block_until_ready(step(state, batch))
        later.append(time.process_time() - begun)
        losses.append(float(metrics["loss"]))
    return {**seconds, "total": sum(seconds.values()), "later step": float(np.median(later)), "losses": losses}


def measure(name: str, root: Path) -> Found:
    """What `measure_one` finds of the version in `root`, in a process of its own without a compilation cache."""
    environment = {**os.environ, "PYTHONPATH": str(root.resolve()), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    command = [sys.executable, str(Path(__file__).resolve()), "one", name]
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"{name} in {root}:\n{run.stdout}\n{run.stderr}")
    return json.loads(run.stdout.splitlines()[-1])


def line(name: str, found: Found) -> str:
    columns = ("total", *PARTS, "later step")
    return f"{name:16}" + "".join(f"{found[column]:11.2f}" for column in columns)


def measure_all(path: Path, names: list[str]) -> None:
    print(f"{'seconds':16}" + "".join(f"{column:>11}" for column in ("total", *PARTS, "later step")))
    every: dict[str, Found] = json.loads(path.read_text()) if path.exists() else {}
    for name in names:
        if name not in every:
            every[name] = measure(name, Path(__file__).parents[1])
            path.write_text(json.dumps(every, indent=1))
            print(line(name, every[name]), flush=True)
    print("\nthe slowest first")
    shown = {name: every[name] for name in names}
    for name, found in sorted(shown.items(), key=lambda item: -item[1]["total"]):
        print(line(name, found))
    print(f"median of {len(shown)}: {statistics.median(found['total'] for found in shown.values()):.2f} s")


def compare(roots: list[Path], names: list[str], rounds: int) -> None:
    ratios: list[float] = []
    print(f"{'seconds':16}{'before':>9}{'after':>9}{'ratio':>7}   later step before, after, ratio; losses differ by")
    for name in names:
        found = [[measure(name, root) for root in roots] for _ in range(rounds)]  # [rounds][versions]

        def median(column: str, version: int, found: list[list[Found]] = found) -> float:
            return statistics.median(one[version][column] for one in found)

        before, after, step, new = (median(column, version) for column in ("total", "later step") for version in (0, 1))
        pairs = zip(found[0][0]["losses"], found[0][1]["losses"], strict=True)
        worst = max(abs(a - b) / max(abs(a), 1e-30) for a, b in pairs)
        ratios.append(after / before)
        print(
            f"{name:16}{before:9.2f}{after:9.2f}{ratios[-1]:7.2f}   {step:.3f}, {new:.3f}, {new / step:.2f}; "
            f"{worst:.0e}",
            flush=True,
        )
    print(f"median ratio {statistics.median(ratios):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=("measure", "compare", "one"))
    parser.add_argument("what", nargs="+", help="measure: a JSON file; compare: two clones; one: a method, prints JSON")
    parser.add_argument("--methods", help="with commas; all if not given")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    if given.mode == "one":
        print(json.dumps(measure_one(given.what[0])))
        return
    from methods_worlds import GIVEN

    from ssl_jax.configs import NAMES

    names = given.methods.split(",") if given.methods else [name for name in NAMES if name not in GIVEN]
    if given.mode == "measure":
        measure_all(Path(given.what[0]), names)
    elif len(given.what) == 2:
        compare([Path(root) for root in given.what], names, given.rounds)
    else:
        parser.error(f"compare takes two clones, BEFORE AFTER, got {' '.join(given.what)}")


if __name__ == "__main__":
    main()

"""Every method under one budget, on Fashion-MNIST: python benchmarks/methods.py [--methods simclr,byol] [--steps 600]

Pre-trains each method's `tiny` config for the same number of steps, and measures its frozen features: weighted kNN and
a linear probe with 10 labels per class, beside the untrained network (the best of its variants) and the raw pixels.
Writes docs/results.md. What is done already is kept in --workdir, so it goes on where it was stopped.
"""

import argparse
import functools
import json
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from ssl_jax import config as configs
from ssl_jax import evaluate, load_backbone, run
from ssl_jax.build import source_pair
from ssl_jax.evaluation import knn, linear
from ssl_jax.evaluation.features import extract
from ssl_jax.methods import METHODS

ROOT = Path(__file__).parents[1]
CORE = ("simclr", "moco_v2", "byol", "simsiam", "barlow_twins", "vicreg", "swav", "dino", "nnclr", "supcon")
SEEDS = (0, 1, 2)  # of the core methods; one of the others
DRAWS = tuple(range(5))  # of the 10 labels per class
KNN, LINEAR = "knn/k20_t0.07/top1", "linear/10_per_class/top1"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS), help="names, with commas; all by default")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / "methods")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results.md")
    arguments = parser.parse_args()
    names = arguments.methods.split(",")
    unknown = set(names) - set(METHODS)
    if unknown:
        parser.error(f"no methods {sorted(unknown)}; there are {', '.join(METHODS)}")
    results = {}
    for seed in SEEDS:
        for name in names:
            if seed == 0 or name in CORE:
                results[name, seed] = pretrained(name, seed, arguments.steps, arguments.workdir)
                print(f"{name} (seed {seed}): {summary(results[name, seed])}", flush=True)
    baselines = {name: untrained(arguments.workdir / f"{name}-0") for name in names}
    pixels = cached(arguments.workdir / "pixels.json", lambda: pixel_scores(arguments.workdir / f"{names[0]}-0"))
    text = table(names, results, baselines, pixels, arguments.steps)
    arguments.out.write_text(text)
    print(text)


def summary(scores):
    return f"kNN {scores[KNN]:.1f}, 10 labels {scores[LINEAR]:.1f}, {scores['seconds']:.0f} s"


def cached(path, compute):
    if not path.exists():
        run.write(path, json.dumps(compute()))
    return json.loads(path.read_text())


def pretrained(name, seed, steps, root):
    """{protocol: percent, "seconds": of the training} of one run."""
    workdir = root / f"{name}-{seed}"

    def compute():
        begun = time.perf_counter()
        settings = {"steps": steps, "seed": seed, "evaluate_every": 0, "log_every": 100, "checkpoint_every": 10**6}
        overrides = [f"--config.{key}={value}" for key, value in settings.items()]
        command = ["-m", "ssl_jax.train", f"--config={ROOT / 'configs' / name}.py:tiny", f"--workdir={workdir}"]
        log = (root / f"{name}-{seed}.log").open("w")
        subprocess.run([sys.executable, *command, *overrides], cwd=ROOT, check=True, stdout=log, stderr=log)
        seconds = time.perf_counter() - begun
        return {**scores(load_backbone(workdir).features, run.read_config(workdir)), "seconds": seconds}

    workdir.mkdir(parents=True, exist_ok=True)
    return cached(workdir / "scores.json", compute)


@functools.cache
def images(name, channels, size):
    """The (training, test) batches of a data set."""
    config = configs.base_config()
    config.data.update(name=name, channels=channels, image_size=size)
    return [evaluate.read_batches(source, config) for source in source_pair(config)]


def scores(features, config):
    data = config.data
    splits = images(data.name, data.channels, tuple(data.image_size))
    (h, y), (test_h, test_y) = (extract(features, batches(), evaluate.BATCH) for batches in splits)
    num_classes = int(y.max()) + 1
    predicted = knn.weighted_knn(h, y, test_h, num_classes=num_classes, k=(20,), temperature=0.07)[20]
    probe = linear.linear_probe(h, y, test_h, test_y, num_classes=num_classes, per_class=10, seeds=DRAWS)
    return {KNN: 100 * float(np.mean(predicted == test_y)), LINEAR: probe.mean}


def untrained(workdir):
    """{protocol: percent} of the best variant of the run's network as it was initialized."""
    config = run.read_config(workdir)

    def compute():
        batches = images(config.data.name, config.data.channels, tuple(config.data.image_size))[0]
        found = [scores(f, config) for f in evaluate.random_features(config, batches).values()]
        return {protocol: max(one[protocol] for one in found) for protocol in (KNN, LINEAR)}

    name = "-".join(str(value) for _, value in sorted(configs.plain(config.model).items())).replace("/", "_")
    return cached(workdir.parent / f"untrained-{name}.json", compute)


def pixel_scores(workdir):
    return scores(evaluate.pixels, run.read_config(workdir))


def table(names, results, baselines, pixels, steps):
    lines = [
        "# Results",
        "",
        f"Every method's `tiny` config on Fashion-MNIST: {steps} steps of 256 images (fewer where the config says so), "
        "on two CPU cores. kNN: k 20, temperature 0.07, test accuracy in percent. 10 labels: a linear probe (logistic "
        f"regression) on 10 labels per class, mean of {len(DRAWS)} draws of the labels. ± is the standard deviation "
        f"over {len(SEEDS)} seeds of the pre-training, where there is one. Untrained: the same network as initialized, "
        "the best of its variants. Time: of the training, over SimCLR's in the same run.",
        "",
        "A few minutes of training say which method learns at all and how fast, not which is best after 1000 epochs.",
        "",
        "| method | backbone | kNN | 10 labels | untrained: kNN | 10 labels | gain at 10 labels | time |",
        "|---|---|---|---|---|---|---|---|",
        f"| raw pixels | | {pixels[KNN]:.1f} | {pixels[LINEAR]:.1f} | | | | |",
    ]
    reference = results.get(("simclr", 0), {}).get("seconds")
    for name in names:
        found = [results[name, seed] for seed in SEEDS if (name, seed) in results]
        values = {protocol: [one[protocol] for one in found] for protocol in (KNN, LINEAR)}
        spread = {p: f" ± {np.std(v, ddof=1):.1f}" if len(v) > 1 else "" for p, v in values.items()}
        base = baselines[name]
        gain = np.mean(values[LINEAR]) - base[LINEAR]
        seconds = f"{found[0]['seconds'] / reference:.1f}" if reference else ""
        backbone = "ViT" if "vit" in configs.load_file(f"{ROOT / 'configs' / name}.py:tiny").model.name else "ResNet"
        cells = [
            name,
            backbone,
            *(f"{np.mean(values[protocol]):.1f}{spread[protocol]}" for protocol in (KNN, LINEAR)),
            *(f"{base[protocol]:.1f}" for protocol in (KNN, LINEAR)),
            f"{gain:+.1f}",
            seconds,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"Made by `python benchmarks/methods.py --steps {steps}` with JAX {jax.__version__}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

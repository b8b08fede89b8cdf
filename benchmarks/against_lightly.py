"""Twelve methods beside lightly's: .venv/bin/python benchmarks/against_lightly.py --peer PEER/bin/python [--cores 0,1]

The same small ResNet, heads, augmentations, optimizer, steps and data on both sides, on this machine's CPU, with the
settings of our `tiny` configs. The peer's side runs in an environment of its own, with lightly and torchvision:

    python3 -m venv PEER && PEER/bin/pip install 'lightly==1.6.*' torchvision

For each seed and method one side runs after the other on one core (lightly_ours.py, lightly_peer.py; the first one
changes with the seed), with memory that is kept, as the command `ssl_jax` has it. Each of --cores works at a method of
its own. Both sides are judged by one program: weighted kNN (k 20, temperature 0.07) on the features.

Writes docs/against_lightly.md from docs/against_lightly.json and docs/against_lightly/ (which test images were right).
What is there for the config as it is now is not measured again; without --peer only the page is written.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import numpy as np
from methods_record import KNN, Measured, Record

from ssl_jax import config as configs
from ssl_jax.__main__ import KEPT_MEMORY
from ssl_jax.data import opening
from ssl_jax.evaluation import comparisons
from ssl_jax.workdir import facts

HERE = Path(__file__).parent
RECORD = Record(HERE.parent / "docs", "against_lightly")
METHODS = (
    "simclr", "moco_v2", "byol", "simsiam", "barlow_twins", "vicreg", "swav", "dino", "nnclr", "tico", "dcl", "mmcr",
)  # fmt: skip
SEEDS = (0, 1, 2)
STEPS = 300
MARGIN = 1.5  # points: the largest difference that does not matter; stated before the runs
SIDES = ("ours", "peer")
FEWER = {"method.local_views": 0}  # lightly's losses of SwAV and DINO get the two large views
CHANGES = {
    # lightly's MoCo goes in one direction, and on one device its BatchNorm has the statistics of the whole batch.
    "moco_v2": {"method.symmetric": False, "model.batch_norm": "sync", "model.batch_norm_groups": 1},
    "swav": FEWER,
    "dino": {**FEWER, "method.hidden": (256, 256)},  # lightly's head has two hidden layers
    "barlow_twins": {"method.projector": (256, 256, 256)},  # lightly's head has three layers
    "mmcr": {"method.projector": (256, 256, 64), "method.momentum": True},  # and this one, and a momentum encoder
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="python of the environment with lightly")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--cores", default="0", help="numbers of processor cores")
    parser.add_argument("--workdir", type=Path, default=HERE.parent / "runs" / "against_lightly")
    arguments = parser.parse_args()
    if arguments.peer:
        arguments.workdir.mkdir(parents=True, exist_ok=True)
        export(arguments.workdir)
        seeds = [int(seed) for seed in arguments.seeds.split(",")]
        jobs = [(name, seed) for seed in seeds for name in arguments.methods.split(",")]
        measure(jobs, arguments.peer, arguments.cores.split(","), arguments.workdir)
    RECORD.page.write_text(page(RECORD.read()))
    print(f"wrote {RECORD.page}")


def config_of(name, seed, steps=STEPS):
    config = configs.get_config(f"{name}:tiny")
    config.update(seed=seed, steps=steps, evaluate_every=0, log_every=100, checkpoint_every=10**6)
    config.update_from_flattened_dict(CHANGES.get(name, {}))
    return config


def export(workdir):
    """The images as an array, and our settings, for the peer's side."""
    arrays = {}
    splits = opening.load_pair("fashion_mnist", train_split="train", test_split="test", channels=1)
    for name, source in zip(("train", "test"), splits, strict=True):
        arrays[name] = np.stack([source[i] for i in range(len(source))])
        arrays[f"{name}_labels"] = source.labels
    np.savez(workdir / "images.npz", **arrays)
    pixels = arrays["train"].astype(np.float32) / 255.0
    settings = {}
    for name in METHODS:
        config = config_of(name, 0)
        views = [view.to_dict() for key, view in config.augment.items() if key != "local"]
        if any(view != views[0] for view in views):
            raise SystemExit(f"the two views of {name}:tiny differ, but lightly_peer.py draws both alike")
        settings[name] = {
            "method": config.method.to_dict(),
            "optimizer": config.optimizer.to_dict(),
            "view": views[0],
            "batch_size": config.batch_size,
            "mean": float(pixels.mean()),
            "std": float(pixels.std()),
        }
    (workdir / "settings.json").write_text(json.dumps(settings))


def measure(jobs, peer, cores, workdir):
    free = SimpleQueue()
    for core in cores:
        free.put(core)
    pythons = {"ours": sys.executable, "peer": peer}

    def run(job):
        name, seed = job
        digest, core = configs.digest(config_of(name, seed)), free.get()
        try:
            for side in SIDES if seed % 2 == 0 else SIDES[::-1]:
                key = f"{side}-{name}-{seed}"
                if RECORD.read().get(key, {}).get("config") != digest:
                    command = [pythons[side], HERE / f"lightly_{side}.py", name, str(seed), str(STEPS), workdir]
                    one_core(command, core, workdir / f"{key}.log")
                    measured = judged(workdir / f"{key}.npz", workdir / "images.npz")
                    RECORD.add(key, measured, config=digest, commit=facts.commit())
                print(key, RECORD.read()[key], flush=True)
        finally:
            free.put(core)

    with ThreadPoolExecutor(len(cores)) as pool:
        list(pool.map(run, jobs))


def one_core(command, core, log):
    environment = os.environ | {"GLIBC_TUNABLES": KEPT_MEMORY}
    with log.open("w") as file:
        subprocess.run(["taskset", "-c", core, *command], env=environment, stdout=file, stderr=file, check=True)


def judged(features, images):
    with np.load(features) as found, np.load(images) as truth:
        right = knn_right(found["train"], truth["train_labels"], found["test"], truth["test_labels"])
        numbers = {
            KNN: 100.0 * float(right.mean()),
            "images_per_second": float(found["images_per_second"]),
            "versions": str(found["versions"]),
        }
    features.unlink()
    return Measured(numbers, {KNN: right[None]})


def knn_right(bank, bank_labels, queries, query_labels, k=20, temperature=0.07):
    """Whether each query is classified right. The same few lines for both sides; numpy only."""
    bank, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank, queries))
    right = []
    for start in range(0, len(queries), 500):
        similarity = queries[start : start + 500] @ bank.T
        nearest = np.argpartition(-similarity, k, axis=1)[:, :k]
        weights = np.exp(np.take_along_axis(similarity, nearest, axis=1) / temperature)
        votes = np.zeros((len(nearest), int(bank_labels.max()) + 1))
        np.add.at(votes, (np.arange(len(nearest))[:, None], bank_labels[nearest]), weights)
        right.append(votes.argmax(axis=1) == query_labels[start : start + 500])
    return np.concatenate(right)


def page(known):
    rows, shown, fast = [], 0, 0
    for name in METHODS:
        seeds = [seed for seed in SEEDS if all(f"{side}-{name}-{seed}" in known for side in SIDES)]
        if not seeds:
            continue
        keys = {side: [f"{side}-{name}-{seed}" for seed in seeds] for side in SIDES}
        right = {side: np.stack([RECORD.right(key, KNN) for key in keys[side]]) * 100 for side in SIDES}
        difference = comparisons.crossed_bootstrap(right["ours"], right["peer"])
        same = len(seeds) > 1 and comparisons.equivalent(difference, MARGIN)
        speeds = {side: [known[key]["images_per_second"] for key in keys[side]] for side in SIDES}
        ratios = sorted(ours / peer for ours, peer in zip(speeds["ours"], speeds["peer"], strict=True))
        shown, fast = shown + same, fast + (float(np.median(ratios)) >= 2)
        accuracies = [f"{right[side].mean():.1f} ({spread(right[side])})" for side in SIDES]
        rows.append(
            f"| {name} | {len(seeds)} | {accuracies[0]} | {accuracies[1]} | {difference.mean:+.1f} | "
            f"{difference.low:+.1f} to {difference.high:+.1f} | {'yes' if same else 'not shown'} | "
            f"{np.median(speeds['ours']):.0f} | {np.median(speeds['peer']):.0f} | "
            f"{np.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
        )
    versions = sorted({side for entry in known.values() for side in entry["versions"].split("; ")})
    commits = sorted({entry["commit"][:7] for entry in known.values()})
    lines = [
        "# Beside lightly",
        "",
        f"The same small ResNet, heads, augmentations, optimizer, data, settings and {STEPS} steps of 256 images on "
        "both sides: Fashion-MNIST, weighted kNN (k 20, temperature 0.07), test accuracy in percent, mean over the "
        "seeds (and their range). One processor core for each run, one side after the other, with memory that is kept "
        "on both.",
        "",
        f"The interval (95 %) is for other seeds and other test images. Same: the whole interval is within {MARGIN} "
        "points, a margin that was stated before the runs. Images/s: medians over the seeds; the ratio: median and "
        "range of the seeds'. lightly's time is mostly torchvision's augmentation, image by image, as its transforms "
        "call it.",
        "",
        "| method | seeds | kNN: ours | lightly | difference | interval | same | images/s: ours | lightly | ratio |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        f"Same within {MARGIN} points: {shown} of {len(rows)}. At least 2.0 times as fast: {fast} of {len(rows)}.",
        "",
        "DINO and SwAV have the two large views, MMCR its momentum encoder, TiCo both directions, MoCo one. lightly's "
        "NNCLR has the other images' neighbors among the negatives, too, which the paper and ours have not. The heads "
        "of BYOL and TiCo begin with LeCun's normal weights here, with torch's default, 0.6 as large, there. In "
        "SimCLR, DCL and MMCR both views pass through our network as one batch, so BatchNorm's statistics are of both; "
        "there, each view has its own. The last layers of BYOL's and TiCo's heads and SwAV's prototypes have a bias "
        "there, and none here, as in the authors' code.",
        *first_steps(known),
        "",
        f"Made by `benchmarks/against_lightly.py` and `benchmarks/lightly_steps.py` at {', '.join(commits)}; "
        f"{'; '.join(versions)}.",
        "",
    ]
    return "\n".join(lines)


def steps_key(name):
    return f"steps-{name}-0"


def first_steps(known):
    """The section on what lightly_steps.py found."""
    rows = []
    for name in (name for name in METHODS if steps_key(name) in known):
        ours, peer = (np.array(known[steps_key(name)][side]) for side in SIDES)
        apart = np.abs(ours - peer)
        cells = [name, *(f"{loss:.4f}" for loss in (ours[0], peer[0], ours[-1], peer[-1]))]
        cells += [f"{apart[:count].max():.4f}" for count in (1, 10, len(apart))]
        rows.append(f"| {' | '.join(cells)} |")
    if not rows:
        return []
    return [
        "",
        "## The same first steps",
        "",
        f"With the same initial parameters and the same views, the losses of the first {len(ours)} steps. They can "
        "differ by rounding, which grows from step to step, and by what the methods do differently. For this "
        "comparison each view passes through our network by itself, too. Not so in the heads of SwAV and of DINO's "
        "student, whose BatchNorm takes all views as one batch, as the authors' does, where lightly's examples pass "
        "each view by itself: all of their difference in the first step comes from this. A bias that a layer has on "
        "lightly's side alone is left out. NNCLR's losses are of different negatives, see above.",
        "",
        f"| method | first loss: ours | lightly | loss {len(ours)}: ours | lightly | largest difference: first step "
        f"| 10 steps | {len(ours)} steps |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
    ]


def spread(right):
    means = right.mean(axis=1)
    return f"{means.min():.1f} to {means.max():.1f}"


if __name__ == "__main__":
    main()

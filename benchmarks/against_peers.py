"""ssl_jax's methods beside another library's: .venv/bin/python benchmarks/against_peers.py --peer PEER/bin/python

The same small ResNet, heads, augmentations, optimizer, steps and data on both sides, on this machine's CPU, with the
settings of our `tiny` configs. The peer's side runs in an environment of its own, which the page names:

    python3 -m venv PEER && PEER/bin/pip install 'lightly==1.6.*' torchvision

For each seed and method one side runs after the other on one core (peer_ours.py; lightly_peer.py or stable_peer.py; the
first one changes with the seed), with memory that is kept, as the command `ssl_jax` has it. Each of --cores works at a
method of its own. Both sides are judged by one program: weighted kNN (k 20, temperature 0.07) on the features.

Writes docs/against_LIBRARY.md from docs/against_LIBRARY.json and docs/against_LIBRARY/ (which test images were right).
What is there for the config as it is now is not measured again; without --peer only the page is written. peer_steps.py
compares the first steps.
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
from methods_record import KNN, Measured
from peer_libraries import LIBRARIES, SIDES, STEPS

from ssl_jax import config as configs
from ssl_jax.__main__ import KEPT_MEMORY
from ssl_jax.data import opening
from ssl_jax.evaluation import comparisons
from ssl_jax.workdir import facts

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)
MARGIN = 1.5  # points: the largest difference that does not matter; stated before the runs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", choices=LIBRARIES, default="lightly")
    parser.add_argument("--peer", help="python of the environment with it")
    parser.add_argument("--methods", help="names, with commas; all by default")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--cores", default="0", help="numbers of processor cores")
    parser.add_argument("--workdir", type=Path, default=HERE.parent / "runs")
    arguments = parser.parse_args()
    library = LIBRARIES[arguments.library]
    if arguments.peer:
        workdir = export(library, arguments.workdir)
        names = arguments.methods.split(",") if arguments.methods else library.methods
        jobs = [(name, int(seed)) for seed in arguments.seeds.split(",") for name in names]
        measure(library, jobs, arguments.peer, arguments.cores.split(","), workdir)
    library.record.page.write_text(page(library, library.record.read()))
    print(f"wrote {library.record.page}")


def export(library, folder):
    """Writes the images as an array, and our settings, for the peer's side. Returns where."""
    workdir = folder / library.name
    workdir.mkdir(parents=True, exist_ok=True)
    arrays = {}
    splits = opening.load_pair("fashion_mnist", train_split="train", test_split="test", channels=1)
    for name, source in zip(("train", "test"), splits, strict=True):
        arrays[name] = np.stack([source[i] for i in range(len(source))])
        arrays[f"{name}_labels"] = source.labels
    np.savez(workdir / "images.npz", **arrays)
    pixels = arrays["train"].astype(np.float32) / 255.0
    settings = {}
    for name in library.methods:
        config = library.config_of(name, 0)
        views = [view.to_dict() for key, view in config.augment.items() if key != "local"]
        if any(view != views[0] for view in views):
            raise SystemExit(f"the two views of {name}:tiny differ, but {library.script} draws both alike")
        settings[name] = {
            "method": config.method.to_dict(),
            "optimizer": config.optimizer.to_dict(),
            "view": views[0],
            "batch_size": config.batch_size,
            "mean": float(pixels.mean()),
            "std": float(pixels.std()),
        }
    (workdir / "settings.json").write_text(json.dumps(settings))
    return workdir


def measure(library, jobs, peer, cores, workdir):
    free, record = SimpleQueue(), library.record
    for core in cores:
        free.put(core)
    commands = {"ours": (sys.executable, HERE / "peer_ours.py", library.title), "peer": (peer, HERE / library.script)}

    def run(job):
        name, seed = job
        digest, core = configs.digest(library.config_of(name, seed)), free.get()
        try:
            for side in SIDES if seed % 2 == 0 else SIDES[::-1]:
                key = f"{side}-{name}-{seed}"
                if record.read().get(key, {}).get("config") != digest:
                    one_core([*commands[side], name, str(seed), str(STEPS), workdir], core, workdir / f"{key}.log")
                    measured = judged(workdir / f"{key}.npz", workdir / "images.npz")
                    record.add(key, measured, config=digest, commit=facts.commit())
                print(key, record.read()[key], flush=True)
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


def page(library, known):
    versions = sorted({side for entry in known.values() for side in entry["versions"].split("; ")})
    commits = sorted({entry["commit"][:7] + "+" * entry["commit"].endswith("+") for entry in known.values()})
    changed = " (+: with changes)" if any(commit.endswith("+") for commit in commits) else ""
    lines = [
        f"# Beside {library.title}",
        *whole_runs(library, known),
        *first_steps(library, known),
        "",
        f"Made by `benchmarks/against_peers.py` and `benchmarks/peer_steps.py` with `--library {library.title}` at "
        f"{', '.join(commits)}{changed}; {'; '.join(versions)}. The other side's environment: `pip install "
        f"{library.install}`.",
        "",
    ]
    return "\n".join(lines)


def whole_runs(library, known):
    """The section on accuracy and speed."""
    rows, shown, fast, record, of_all = [], 0, 0, library.record, {}
    for name in library.methods:
        seeds = [seed for seed in SEEDS if all(f"{side}-{name}-{seed}" in known for side in SIDES)]
        if not seeds:
            continue
        keys = {side: [f"{side}-{name}-{seed}" for seed in seeds] for side in SIDES}
        right = {side: np.stack([record.right(key, KNN)[0] for key in keys[side]]) * 100.0 for side in SIDES}
        difference = comparisons.crossed_bootstrap(right["ours"], right["peer"])
        same = len(seeds) > 1 and comparisons.equivalent(difference, MARGIN)
        speeds = {side: [known[key]["images_per_second"] for key in keys[side]] for side in SIDES}
        ratios = sorted(ours / peer for ours, peer in zip(speeds["ours"], speeds["peer"], strict=True))
        if len(seeds) > 1:
            of_all[name] = right
        shown, fast = shown + same, fast + (float(np.median(ratios)) >= 2)
        accuracies = [f"{right[side].mean():.1f} ({spread(right[side])})" for side in SIDES]
        rows.append(
            f"| {name} | {len(seeds)} | {accuracies[0]} | {accuracies[1]} | {difference.mean:+.1f} | "
            f"{difference.low:+.1f} to {difference.high:+.1f} | {'yes' if same else 'not shown'} | "
            f"{np.median(speeds['ours']):.0f} | {np.median(speeds['peer']):.0f} | "
            f"{np.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
        )
    if not rows:
        return []
    title = library.title
    alike = [right for name, right in of_all.items() if name not in library.unlike]
    return [
        "",
        f"The same small ResNet, heads, augmentations, optimizer, data, settings and {STEPS} steps of 256 images on "
        "both sides: Fashion-MNIST, weighted kNN (k 20, temperature 0.07), test accuracy in percent, mean over the "
        "seeds (and their range). One processor core for each run, one side after the other, with memory that is kept "
        "on both.",
        "",
        "The interval (95 %) is for other seeds and other test images, each by itself. Same: the whole interval is "
        f"within {MARGIN} points. Images/s: medians over the seeds; the ratio: median and range of the seeds'. "
        f"{title}'s are of the whole run, ours without its start, in which the step is compiled. The settings come "
        "from our `tiny` configs, which were chosen by our runs on these test images, so they may suit our side "
        "better.",
        *([library.history] if library.history else []),
        "",
        f"| method | seeds | kNN: ours | {title} | difference | interval | same | images/s: ours | {title} | ratio |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        f"Same within {MARGIN} points: {shown} of {len(rows)}. At least 2.0 times as fast: {fast} of {len(rows)}.",
        "",
        *(
            f"Mean difference of {len(some)} methods{which}, for other seeds and other test images: {pooled(some)}."
            for some, which in ((list(of_all.values()), ""), (alike, " that no difference named below concerns"))
            if some
        ),
        "",
        library.differences,
    ]


def pooled(of_methods):
    """The mean difference of several methods, and its interval, as text. of_methods: side -> [seeds, images], of two
    seeds at least, on the same images.

    Student's t with the errors over images, which all methods share, and over each side's seeds.
    """
    per_image = np.mean([right["ours"].mean(axis=0) - right["peer"].mean(axis=0) for right in of_methods], axis=0)
    sides = [right[side].mean(axis=1) for right in of_methods for side in SIDES]  # the accuracies of the seeds
    parts = [(accuracies.var(ddof=1) / len(accuracies), len(accuracies) - 1) for accuracies in sides]
    parts = [(variance / len(of_methods) ** 2, freedom) for variance, freedom in parts]
    parts.append((per_image.var(ddof=1) / len(per_image), len(per_image) - 1))
    found = comparisons.of_parts(float(per_image.mean()), parts)
    return f"{found.mean:+.2f} ({found.low:+.2f} to {found.high:+.2f})"


def steps_key(name):
    return f"steps-{name}-0"


def first_steps(library, known):
    """The section on what peer_steps.py found."""
    rows = []
    for name in (name for name in library.methods if steps_key(name) in known):
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
        f"With the same initial parameters of the small ResNet of our `tiny` configs, and the same views of "
        f"Fashion-MNIST, the losses of the first {len(ours)} steps of 256 images. They can "
        "differ by rounding, which grows from step to step, and by what the methods do differently. For this "
        f"comparison each view passes through our network by itself, too. {library.steps_differences}",
        "",
        f"| method | first loss: ours | {library.title} | loss {len(ours)}: ours | {library.title} | largest "
        f"difference: first step | 10 steps | {len(ours)} steps |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
    ]


def spread(right):
    means = right.mean(axis=1)
    return f"{means.min():.1f} to {means.max():.1f}"


if __name__ == "__main__":
    main()

"""Every method under one budget, on Fashion-MNIST: python benchmarks/methods.py [--methods simclr,byol] [--steps 300]

Pre-trains each method's `tiny` config for the same number of steps, and measures its frozen features by weighted kNN
and a linear probe with 10 labels per class, and the whole network fine-tuned on those labels: beside the same of the
untrained network (the best of its variants) and the raw pixels.

Writes docs/results.md, from the numbers that it keeps in docs/results.json with the hash of their config and the
commit. Only what a changed config has made stale is measured again, or with --again what is of another commit; what was
stopped goes on. Several of it may run at once, for some of the methods each. Methods that need color, as colorization,
are trained on the images of their config, and measured on Fashion-MNIST like all others.
"""

import argparse
import fcntl
import functools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax import config as configs
from ssl_jax import load_backbone
from ssl_jax.evaluation import baselines, finetuning_recipes, knn, linear, of_backbones
from ssl_jax.evaluation.features import BATCH, extract, read_batches
from ssl_jax.evaluation.subject import Images, Subject
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.training import build
from ssl_jax.training.build import source_pair
from ssl_jax.training.checkpoint import Checkpoints
from ssl_jax.training.state import create_state
from ssl_jax.weights import Backbone
from ssl_jax.workdir import config_file, facts, files

ROOT = Path(__file__).parents[1]
RECORD, RESULTS = ROOT / "docs" / "results.json", ROOT / "docs" / "results.md"
# Not above their untrained network under each protocol after that many steps: what five times as many give.
SLOW, LONGER = ("bigan", "dcgan", "ijepa"), 5
CORE = ("simclr", "moco_v2", "byol", "simsiam", "barlow_twins", "vicreg", "swav", "dino", "nnclr", "supcon")
# Not those that start with a trained teacher; of distill, see distill.py.
COMPARED = [name for name in METHODS if name not in ("clusterfit", "distill")]
DATA = "fashion_mnist"
DRAWS = tuple(range(5))  # of the 10 labels per class
KNN, LINEAR, FINETUNE = "knn/k20_t0.07/top1", "linear/10_per_class/top1", "finetune/10_per_class/top1"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(COMPARED), help="names, with commas; all by default")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", default="0,1,2", help="of the core methods; of the others the first is taken")
    parser.add_argument("--frozen-only", action="store_true", help="leave fine-tuning for another time")
    parser.add_argument("--again", action="store_true", help="measures once more what is of another commit")
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / "methods")
    arguments = parser.parse_args()
    names = arguments.methods.split(",")
    unknown = set(names) - set(COMPARED)
    if unknown:
        parser.error(f"no methods {sorted(unknown)}; there are {', '.join(COMPARED)}")
    commit = facts.commit()
    root = arguments.workdir / commit if arguments.again else arguments.workdir
    root.mkdir(parents=True, exist_ok=True)
    measure = functools.partial(kept_or_measured, commit=commit, again=arguments.again)
    measure("pixels", evaluated(configured("simclr", 0, arguments.steps)), pixel_scores)
    for seed in map(int, arguments.seeds.split(",")):
        for name in names:
            if seed == 0 or name in CORE:
                config = configured(name, seed, arguments.steps)
                measure(f"{name}-{seed}", config, functools.partial(pretrained, root=root))
                measure(untrained_key(config), without_training(config), untrained)
                if seed == 0 and not arguments.frozen_only:
                    tune = functools.partial(finetuned, root=root)
                    measure(f"finetuned-{name}", config, tune)
                    measure(f"finetuned-{untrained_key(config)}", without_training(config), untrained_finetuned)
    for name in (name for name in names if name in SLOW):
        config = configured(name, 0, LONGER * arguments.steps)
        longer = root / "longer"
        measure(f"longer-{name}", config, functools.partial(pretrained, root=longer))
        if not arguments.frozen_only:
            measure(f"finetuned-longer-{name}", config, functools.partial(finetuned, root=longer))
    RESULTS.write_text(table(json.loads(RECORD.read_text()), arguments.steps))
    print(f"wrote {RESULTS}")


def settings(seed, steps):
    return {"steps": steps, "seed": seed, "evaluate_every": 0, "log_every": 100, "checkpoint_every": 10**6}


def configured(name, seed, steps):
    config = configs.get_config(f"{name}:tiny")
    config.update(settings(seed, steps))
    return config


def evaluated(config):
    """What is evaluated on: all images of Fashion-MNIST, whichever were trained on."""
    return {"name": DATA, "image_size": (28, 28)} | {key: config.data[key] for key in ("channels", "mean", "std")}


def with_data(data):
    config = configs.base_config()
    config.data.update(data)
    return config


def without_training(config):
    """What an untrained network depends on."""
    return {"seed": 0, "data": evaluated(config), "model": config.model, "compute_dtype": config.compute_dtype}


def untrained_key(config):
    """One for all methods of the same network and data."""
    return f"untrained-{config.model.name}-{configs.digest(without_training(config))}"


def kept_or_measured(key, config, compute, *, commit, again):
    """Adds `compute(config)` to docs/results.json, if it is not there for this config, or `again` for this commit."""
    found = read_record().get(key)
    if not found or found["config"] != configs.digest(config) or (again and found.get("commit") != commit):
        found = {"config": configs.digest(config), "commit": commit, **compute(config)}
        with RECORD.with_suffix(".lock").open("w") as lock:  # others may add to it at the same time
            fcntl.flock(lock, fcntl.LOCK_EX)
            files.write(RECORD, json.dumps(dict(sorted((read_record() | {key: found}).items())), indent=1) + "\n")
    print(f"{key}: {found}", flush=True)


def read_record():
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}


def pretrain(config, root):
    """The workdir of a finished run of the config."""
    name = config.method.name
    workdir = root / f"{name}-{config.seed}"
    if (workdir / "config.json").exists() and configs.differences(config_file.read_config(workdir), config):
        shutil.rmtree(workdir)
    if (workdir / "backbone.safetensors").exists():
        return workdir
    workdir.mkdir(parents=True, exist_ok=True)
    overrides = [f"--config.{key}={value}" for key, value in settings(config.seed, config.steps).items()]
    command = ["-m", "ssl_jax", "train", f"--config={name}:tiny", f"--workdir={workdir}", *overrides]
    with (workdir / "log.txt").open("a") as log:
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=log, stderr=log)
    return workdir


def restore(workdir):
    """(config, method, state, training images, test images) of a finished run."""
    config = configs.parse(config_file.read_config(workdir))
    train, test = source_pair(config)
    size = config.batch_size
    method = build.method(config, Schedule(size, config.steps, len(train) // size, len(train), len(train.class_names)))
    tx, _ = build.optimizer(config, config.steps, method)
    views = build.augmentations(config, method.views)
    example = jnp.zeros((1, *views[0].size, config.data.channels))
    state = Checkpoints(workdir / "checkpoints").restore(create_state(method, tx, example, config.seed))
    return config, method, state, train, test


def pretrained(config, root):
    """The scores of a run's frozen features, and the alarms that it raised."""
    workdir = pretrain(config, root)
    alarms = re.findall(r"WARNING.*step \d+, (\w+):", (workdir / "log.txt").read_text())
    return {**scores(load_backbone(workdir).features, config), "alarms": sorted(set(alarms))}


def finetuned(config, root):
    return tuned_score("pretrained", load_backbone(pretrain(config, root)), config)


def untrained_finetuned(given):
    """The score of the best variant of a network that only these labels train."""
    config, variants = untrained_variants(given)
    found = [tuned_score(name, variants[name], config) for name in variants if not name.startswith("calibrated")]
    return max(found, key=lambda score: score[FINETUNE])


def tuned_score(name, backbone, config):
    splits = source_pair(with_data(evaluated(config)))
    data = config.data
    images = Images(*splits, tuple(data.image_size), data.channels, data.memory_bytes)
    subject = Subject(name, None, images, backbone)
    found = of_backbones.finetuned(subject, labels_per_class=(10,))[FINETUNE]
    return {FINETUNE: found["mean"], "std": found["std"], "learning_rate": found["learning_rate"]}


@functools.cache
def images(channels):
    """The (training, test) batches."""
    config = with_data(dict(name=DATA, channels=channels, image_size=(28, 28)))
    options = dict(image_size=config.data.image_size, pixel_bytes=channels, memory_bytes=config.data.memory_bytes)
    return [read_batches(source, **options) for source in source_pair(config)]


def scores(features, config):
    splits = images(config.data.channels)
    (h, y, _), (test_h, test_y, _) = (extract(features, batches(), BATCH) for batches in splits)
    num_classes = int(y.max()) + 1
    predicted = knn.weighted_knn(h, y, test_h, num_classes=num_classes, k=(20,), temperature=0.07)[20]
    probe = linear.linear_probe(h, y, test_h, test_y, num_classes=num_classes, per_class=10, seeds=DRAWS)
    return {KNN: 100 * float(np.mean(predicted == test_y)), LINEAR: probe.mean}


def untrained(given):
    """The scores of the best variant of a network as it was initialized."""
    config, variants = untrained_variants(given)
    found = [scores(backbone.features, config) for backbone in variants.values()]
    return {protocol: max(one[protocol] for one in found) for protocol in (KNN, LINEAR)}


def untrained_variants(given):
    """(config, the backbones of baselines.random_backbones)"""
    config = configs.base_config()
    config.update(given)
    data, network = config.data, build.backbone(config)
    backbone = Backbone(network, {}, tuple(data.mean), tuple(data.std))
    options = dict(image_size=tuple(data.image_size), seed=config.seed)
    return config, baselines.random_backbones(backbone, images(data.channels)[0], **options)


def pixel_scores(data):
    return scores(baselines.pixels, with_data(data))


HEADER = (
    "| method | backbone | kNN | 10 labels | gain | fine-tuned | gain | alarms | commit |",
    "|---|---|---|---|---|---|---|---|---|",
)


def row(name, found, tuned, known, base_key):
    """Of the table; found: the scores of each seed, tuned: of the fine-tuned network, if it was."""
    base, tuned_base = known[base_key], known.get(f"finetuned-{base_key}")
    means = {protocol: np.mean([one[protocol] for one in found]) for protocol in (KNN, LINEAR)}
    spread = {p: f" ± {np.std([one[p] for one in found], ddof=1):.1f}" if len(found) > 1 else "" for p in (KNN, LINEAR)}
    cells = [
        name,
        configured(name, 0, 1).model.name,
        *(f"{means[protocol]:.1f}{spread[protocol]} ({base[protocol]:.1f})" for protocol in (KNN, LINEAR)),
        f"{means[LINEAR] - base[LINEAR]:+.1f}",
        f"{tuned[FINETUNE]:.1f} ({tuned_base[FINETUNE]:.1f})" if tuned and tuned_base else "",
        f"{tuned[FINETUNE] - tuned_base[FINETUNE]:+.1f}" if tuned and tuned_base else "",
        ", ".join(sorted({alarm for one in found for alarm in one["alarms"]})),
        ", ".join(sorted({one["commit"] for one in found if "commit" in one})),
    ]
    return f"| {' | '.join(cells)} |"


def table(known, steps):
    lines = [
        "# Results",
        "",
        f"Every method's `tiny` config on Fashion-MNIST: {steps} steps of 256 images (fewer where the config says so), "
        "then test accuracy in percent.",
        "",
        "- kNN: of frozen features, k 20, temperature 0.07.",
        f"- 10 labels: a linear probe (logistic regression) of frozen features on 10 labels per class, mean of "
        f"{len(DRAWS)} draws.",
        f"- fine-tuned: the whole network trained on 10 labels per class, mean of 3 draws; "
        f"{finetuning_recipes.Recipe.steps} steps, the learning rate chosen on a fifth of the labels.",
        "- In parentheses what the untrained network gives under the same protocol, the best of its variants.",
        "- ± is the standard deviation over three seeds of the pre-training, where there is one.",
        "- commit: of the code that the frozen features were made with. Rows without one are older than the comparison "
        "with the authors' settings ([fidelity.md](fidelity.md)), which changed many of them.",
        "",
        "A few minutes of training say which method learns at all and how fast, not which is best after 1000 epochs.",
        "",
        *HEADER,
        f"| raw pixels | | {known['pixels'][KNN]:.1f} | {known['pixels'][LINEAR]:.1f} | | | | | |",
    ]
    bases = {name: untrained_key(configured(name, 0, steps)) for name in COMPARED}
    for name in (name for name in COMPARED if f"{name}-0" in known and bases[name] in known):
        found = [known[key] for key in known if re.fullmatch(rf"{name}-\d+", key)]
        lines.append(row(name, found, known.get(f"finetuned-{name}"), known, bases[name]))
    slow = [name for name in SLOW if f"longer-{name}" in known]
    if slow:
        lines += [
            "",
            f"{LONGER * steps} steps, of methods that after {steps} are not above their untrained network under every "
            "protocol:",
            "",
            *HEADER,
            *(
                row(name, [known[f"longer-{name}"]], known.get(f"finetuned-longer-{name}"), known, bases[name])
                for name in slow
            ),
        ]
    missing = [name for name in COMPARED if f"{name}-0" not in known or bases[name] not in known]
    if missing:
        lines += ["", f"Not measured yet: {', '.join(missing)}."]
    elsewhere = [name for name in COMPARED if configured(name, 0, steps).data.name != DATA]
    lines += [
        "",
        f"Trained on color images, those of their configs, and measured on Fashion-MNIST: {', '.join(elsewhere)}.",
    ]
    lines += [
        "",
        f"Made by `python benchmarks/methods.py --steps {steps}` with JAX {jax.__version__}; "
        "[results.json](results.json) has the numbers and the hashes of the configs.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

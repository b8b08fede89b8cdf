"""Every method under one budget: python benchmarks/methods.py [--data DATA] [--methods simclr,byol] [--steps 300]

Pre-trains each method's `tiny` config for the same number of steps, and measures its frozen features by weighted kNN
and a linear probe with 10 labels per class, and the whole network fine-tuned on those labels: beside the same of the
untrained network (the best of its variants) and the raw pixels.

Writes docs/results.md (of emoji docs/results_emoji.md) from the numbers that it keeps in docs/results.json, with the
hash of their config and the commit, and from which test images were right, in docs/results/. It measures what is not
there, what a changed config has made stale, what has no right images yet, and with --again what is of another commit.
What was stopped goes on. Several of it may run at once, for some of the methods each. --methods "" only writes the
page. On Fashion-MNIST, methods that need color, as colorization, are trained on the images of their config, and
measured on Fashion-MNIST like all others. Methods that start with a trained network get that of another method's run
under the same budget (GIVEN in methods_worlds.py).
"""

import argparse
import copy
import dataclasses
import functools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import methods_page
import numpy as np
from methods_record import FINETUNE, KNN, LINEAR, Measured, Record
from methods_worlds import (
    DRAWS,
    FASHION,
    GIVEN,
    LONGER,
    UNTRAINED_SEEDS,
    WORLDS,
    configured,
    evaluated,
    settings,
    untrained_key,
    without_training,
)

from ssl_jax import config as configs
from ssl_jax import load_backbone
from ssl_jax.evaluation import baselines, knn, linear, of_backbones
from ssl_jax.evaluation.features import BATCH, extract, read_batches
from ssl_jax.evaluation.subject import Images, Subject
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.training import augmenting, build, reading
from ssl_jax.training.checkpoint import Checkpoints
from ssl_jax.training.state import create_state
from ssl_jax.weights import Backbone
from ssl_jax.workdir import config_file, facts

ROOT = Path(__file__).parents[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion_mnist", choices=WORLDS, help="what methods are compared on")
    parser.add_argument("--methods", default=",".join(METHODS), help="names, with commas; all by default")
    parser.add_argument("--steps", type=int, default=300)
    seeds = 'of pre-trainings; "" for untrained networks only. Networks are fine-tuned from seed 0 only'
    parser.add_argument("--seeds", default="0,1,2", help=seeds)
    parser.add_argument("--frozen-only", action="store_true", help="leave fine-tuning for another time")
    parser.add_argument("--again", action="store_true", help="measures once more what is of another commit")
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / "methods")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the numbers and the page are kept")
    arguments = parser.parse_args()
    names = [name for name in arguments.methods.split(",") if name]
    unknown = set(names) - set(METHODS)
    if unknown:
        parser.error(f"no methods {sorted(unknown)}; there are {', '.join(METHODS)}")
    world = WORLDS[arguments.data]
    record = Record(arguments.docs, world.record)
    seeds = [int(seed) for seed in arguments.seeds.split(",") if seed]
    if names:
        measure(arguments, world, record, names, seeds)
    record.page.write_text(methods_page.page(world, record, arguments.steps))
    print(f"wrote {record.page}")


def measure(arguments, world, record, names, seeds):
    commit = facts.commit()
    root = arguments.workdir / commit if arguments.again else arguments.workdir
    root = root if world is FASHION else root / world.record
    root.mkdir(parents=True, exist_ok=True)
    keep = functools.partial(kept_or_measured, record, commit=commit, again=arguments.again)
    of_world = functools.partial(configured, world=world)
    keep("images", evaluated(of_world("simclr", 0, arguments.steps), world), digests, frozen=False)
    keep("pixels", evaluated(of_world("simclr", 0, arguments.steps), world), pixel_scores)
    networks = [of_world(name, seed, arguments.steps) for seed in UNTRAINED_SEEDS for name in names]
    for key, base in {untrained_key(config, world): without_training(config, world) for config in networks}.items():
        keep(key, base, untrained)
    for seed in seeds:
        for name in names:
            config = of_world(name, seed, arguments.steps)
            keep(f"{name}-{seed}", config, functools.partial(pretrained, root=root, world=world))
            if seed == 0 and not arguments.frozen_only:
                tune = functools.partial(finetuned, root=root, world=world)
                keep(f"finetuned-{name}", config, tune, frozen=False)
                base = f"finetuned-{untrained_key(config, world)}"
                keep(base, without_training(config, world), untrained_finetuned, frozen=False)
    known = record.read()
    not_above = {
        row.name for row in methods_page.rows(known, world, arguments.steps) if methods_page.short_of(known, row)
    }
    for name in (name for name in names if seeds and name in not_above):
        config = of_world(name, 0, LONGER * arguments.steps)
        longer = root / "longer"
        keep(f"longer-{name}", config, functools.partial(pretrained, root=longer, world=world))
        if not arguments.frozen_only:
            tune = functools.partial(finetuned, root=longer, world=world)
            keep(f"finetuned-longer-{name}", config, tune, frozen=False)


def with_data(data):
    config = configs.base_config()
    config.data.update(data)
    return config


def kept_or_measured(record, key, config, compute, *, commit, again, frozen=True):
    """Adds `compute(config)` to the record, if it is not there for this config, or `again` for this commit. frozen:
    whether it is of frozen features, of which right images are kept."""
    found, digest = record.read().get(key), configs.digest(config)
    stale = not found or found["config"] != digest or (again and found.get("commit") != commit)
    if stale or (frozen and not record.has_right(key)):
        record.add(key, compute(config), config=digest, commit=commit, jax=jax.__version__)
    print(f"{key}: {record.read()[key]}", flush=True)


def pretrain(config, root, world=FASHION):
    """The workdir of a finished run of the config, and of the runs that it starts with."""
    name = config.method.name
    workdir = root / f"{name}-{config.seed}"
    written, teacher = workdir / "config.json", {}
    if name in GIVEN:
        key, other = GIVEN[name]
        given = pretrain(configured(other, config.seed, config.steps, world), root, world)
        teacher = {f"method.{key}": str(given)}
        config = copy.deepcopy(config)
        config.update_from_flattened_dict(teacher)
        if written.exists() and (given / "backbone.safetensors").stat().st_mtime > written.stat().st_mtime:
            shutil.rmtree(workdir)
    if written.exists() and configs.differences(config_file.read_config(workdir), config):
        shutil.rmtree(workdir)
    if (workdir / "backbone.safetensors").exists():
        return workdir
    workdir.mkdir(parents=True, exist_ok=True)
    changes = settings(config.seed, config.steps) | world.settings(configs.get_config(f"{name}:tiny")) | teacher
    overrides = [f"--config.{key}={value}" for key, value in changes.items()]
    command = ["-m", "ssl_jax", "train", f"--config={name}:tiny", f"--workdir={workdir}", *overrides]
    with (workdir / "log.txt").open("a") as log:
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=log, stderr=log)
    return workdir


def restore(workdir):
    """(config, method, state, training images, test images) of a finished run."""
    config = configs.parse(config_file.read_config(workdir))
    train, test = reading.source_pair(config)
    size = config.batch_size
    method = build.method(config, Schedule(size, config.steps, len(train) // size, len(train), len(train.class_names)))
    tx, _ = build.optimizer(config, config.steps, method)
    views = augmenting.augmentations(config, method.views)
    example = jnp.zeros((1, *views[0].size, config.data.channels))
    state = Checkpoints(workdir / "checkpoints").restore(create_state(method, tx, example, config.seed))
    return config, method, state, train, test


def pretrained(config, root, world):
    """The scores of a run's frozen features, and the alarms that it raised."""
    workdir = pretrain(config, root, world)
    alarms = re.findall(r"WARNING.*step \d+, (\w+):", (workdir / "log.txt").read_text())
    found = scores(load_backbone(workdir).features, evaluated(config, world))
    return dataclasses.replace(found, numbers={**found.numbers, "alarms": sorted(set(alarms))})


def finetuned(config, root, world):
    return tuned_score("pretrained", load_backbone(pretrain(config, root, world)), evaluated(config, world))


def untrained_finetuned(given):
    """The score of the best variant of a network that only these labels train."""
    variants = untrained_variants(given)
    found = [tuned_score(name, variants[name], given["data"]) for name in variants if not name.startswith("calibrated")]
    return max(found, key=lambda measured: measured.numbers[FINETUNE])


def tuned_score(name, backbone, data):
    config = with_data(data)
    options = config.data
    images = Images(*reading.source_pair(config), tuple(options.image_size), options.channels, options.memory_bytes)
    subject = Subject(name, None, images, backbone)
    found = of_backbones.finetuned(subject, labels_per_class=(10,))[FINETUNE]
    return Measured({FINETUNE: found["mean"], "std": found["std"], "learning_rate": found["learning_rate"]}, {})


@functools.cache
def images(name, channels, split, test_split):
    """(training, test): (its batches, its groups)."""
    config = with_data(dict(name=name, channels=channels, split=split, test_split=test_split, image_size=(28, 28)))
    options = dict(image_size=config.data.image_size, pixel_bytes=channels, memory_bytes=config.data.memory_bytes)
    return [(read_batches(source, **options), source.groups) for source in reading.source_pair(config)]


def images_of(data):
    config = with_data(data).data
    return images(config.name, config.channels, config.split, config.test_split)


def scores(features, data):
    (train, groups), (test, test_groups) = images_of(data)
    (h, y, _), (test_h, test_y, _) = (extract(features, batches(), BATCH) for batches in (train, test))
    num_classes = int(y.max()) + 1
    predicted = knn.weighted_knn(h, y, test_h, num_classes=num_classes, k=(20,), temperature=0.07)[20]
    options = dict(num_classes=num_classes, per_class=10, seeds=DRAWS, groups=groups)
    probe = linear.linear_probe(h, y, test_h, test_y, **options)
    right = {KNN: (predicted == test_y)[None], LINEAR: probe.predictions == test_y}
    return Measured({protocol: 100 * float(np.mean(hits)) for protocol, hits in right.items()}, right, test_groups)


def untrained(given):
    """The scores of the best variant of a network as it was initialized."""
    found = [scores(backbone.features, given["data"]) for backbone in untrained_variants(given).values()]
    best = {protocol: max(found, key=lambda one: one.numbers[protocol]) for protocol in (KNN, LINEAR)}
    numbers = {protocol: one.numbers[protocol] for protocol, one in best.items()}
    return Measured(numbers, {protocol: one.right[protocol] for protocol, one in best.items()}, found[0].groups)


def untrained_variants(given):
    """The backbones of baselines.random_backbones."""
    config = configs.base_config()
    config.update(given)
    data, network = config.data, build.backbone(config)
    backbone = Backbone(network, {}, tuple(data.mean), tuple(data.std))
    options = dict(image_size=tuple(data.image_size), seed=config.seed)
    return baselines.random_backbones(backbone, images_of(given["data"])[0][0], **options)


def digests(data):
    """Of the images that are measured on, with their numbers."""
    sources = zip(("training", "testing"), reading.source_pair(with_data(data)), strict=True)
    return Measured({name: f"{len(source):,} ({source.digest()})" for name, source in sources}, {})


def pixel_scores(data):
    normalization = reading.normalization(with_data(data))
    return scores(functools.partial(baselines.pixels, normalization), data)


if __name__ == "__main__":
    main()

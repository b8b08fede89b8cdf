"""Evaluation: python -m ssl_jax.evaluate --workdir DIR [--data NAME_OR_FOLDER] [--protocols knn,linear,finetune]

The pre-trained backbone beside random initialization and the raw pixels, all under the same protocols: its frozen
features by kNN and linear probes, and, where asked for, the whole of it fine-tuned. Writes DIR/evaluation.json and,
for the report, DIR/samples/embeddings.npz.
"""

import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ssl_jax import build, files, load_backbone, models, run
from ssl_jax import config as configs
from ssl_jax.data import pipeline, sources
from ssl_jax.data.augment import Augmentation
from ssl_jax.evaluation import knn, linear
from ssl_jax.evaluation.features import extract
from ssl_jax.finetune import Recipe, finetune
from ssl_jax.weights import Backbone

BATCH = 512
# Enough for running statistics of momentum 0.9 to forget their initial values (0.9^50 = 0.5 %).
CALIBRATION_BATCHES = 50
# Pixels are compared at no more than this many a side: 150,000 numbers an image would need another protocol.
PIXEL_SIDE = 32
# Images whose embeddings are kept for the report's map and neighbors, and their largest side there.
SAMPLES, SAMPLE_SIDE = 2000, 64
KNN_K, KNN_TEMPERATURE = (20, 200), 0.07
LABELS_PER_CLASS = (10, 100, None)
FINETUNE_LABELS_PER_CLASS, FINETUNE_CROP_AREA = (10, 100), (0.5, 1.0)
PROTOCOLS, BY_DEFAULT = ("knn", "linear", "finetune"), ("knn", "linear")  # fine-tuning takes minutes on a CPU

Batches = Callable[[], Iterable[Mapping[str, np.ndarray]]]
Features = Callable[[np.ndarray], np.ndarray]  # uint8 [BATCH, height, width, channels] -> [BATCH, dim]
Scores = dict[str, dict[str, Any]]  # protocol -> {"mean": percent, "std": percent, ...}


def evaluate(workdir: Path, data: str, protocols: tuple[str, ...]) -> dict[str, Any]:
    """Writes and returns evaluation.json. `data`: a TFDS name or a folder; "" for the data of the run."""
    config = run.read_config(workdir)
    if data:
        config.data.update(name="folder", path=data) if Path(data).is_dir() else config.data.update(name=data, path="")
    backbone = configs.call(load_backbone, {}, "--workdir", workdir)
    train, test = build.source_pair(config)
    batches = {"train": read_batches(train, config), "test": read_batches(test, config)}
    result: dict[str, Any] = {
        "data": {
            "name": train.name,
            "train_images": len(train),
            "test_images": len(test),
            "classes": list(train.class_names),
        }
    }
    h, labels = extract(backbone.features, batches["test"](), BATCH)
    save_embeddings(workdir, batches["test"], h, labels, train.class_names)
    if not train.class_names:
        print(f"{train.name} has no labels, which {' and '.join(protocols)} measure against; the embeddings are saved")
    else:
        frozen = functools.partial(
            score_features, batches=batches, num_classes=len(train.class_names), protocols=protocols
        )

        def score(name: str, backbone: Backbone, *, tuned: bool) -> Scores:
            return frozen(name, backbone.features) | (
                score_finetuning(name, backbone, train, test, config) if tuned else {}
            )

        tuned = "finetune" in protocols
        result["pretrained"] = score("pretrained", backbone, tuned=tuned)
        result["pixels"] = frozen("pixels", pixels)
        result["random_variants"] = {
            # Training forgets the statistics that it began with.
            name: score(f"random, {name}", untrained, tuned=tuned and not name.startswith("calibrated"))
            for name, untrained in random_backbones(config, batches["train"]).items()
        }
        result["random"] = best_of(result["random_variants"])
        print_table(result)
    run.write(workdir / "evaluation.json", json.dumps(result, indent=2))
    return result


def read_batches(source: sources.Source, config: ConfigDict) -> Batches:
    """The source's images in order, as often as called for; kept decoded where they fit in memory."""
    data = config.data
    read = functools.partial(pipeline.eval_batches, source, image_size=data.image_size, batch_size=BATCH)
    if len(source) * np.prod(data.image_size) * data.channels > data.memory_bytes:
        return read
    held = list(read())
    return lambda: held


def pixels(images: np.ndarray) -> np.ndarray:
    """Images in 0..1, no larger than PIXEL_SIDE, as rows."""
    return shrink(images, PIXEL_SIDE).reshape(len(images), -1).astype(np.float32) / 255.0


def shrink(images: np.ndarray, side: int) -> np.ndarray:
    """uint8 images [n, height, width, channels] whose larger side is at most `side`, averaged over areas."""
    height, width, channels = images.shape[1:]
    if max(height, width) <= side:
        return images
    scale = side / max(height, width)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    small = [cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in images]
    return np.stack(small).reshape(len(images), size[1], size[0], channels)


def random_backbones(config: ConfigDict, batches: Batches) -> dict[str, Backbone]:
    """Untrained backbones. How random matters: BatchNorm statistics as initialized or calibrated on training images,
    and the last BatchNorm scale of each residual block 1 or 0, move kNN by ten points and more."""
    options = build.model_options(config)
    zero_residual = {"": False, "_zero_residual": True} if "zero_init_residual" in options else {"": None}
    variants = {}
    for suffix, zero in zero_residual.items():
        module = models.create(**(options if zero is None else {**options, "zero_init_residual": zero}))
        example = jnp.zeros((1, *config.data.image_size, config.data.channels))
        variables = module.init(jax.random.key(config.seed), example)
        initial = Backbone(module, variables, tuple(config.data.mean), tuple(config.data.std))
        variants["initial" + suffix] = initial
        if "batch_stats" in variables:
            variants["calibrated" + suffix] = calibrate(initial, batches)
    return variants


def calibrate(backbone: Backbone, batches: Batches) -> Backbone:
    """With BatchNorm statistics of training images."""

    @jax.jit
    def update(batch_stats, images):
        given = {"params": backbone.variables["params"], "batch_stats": batch_stats}
        return backbone.model.apply(given, images, train=True, mutable=["batch_stats"])[1]["batch_stats"]

    batch_stats, seen = backbone.variables["batch_stats"], 0
    while seen < CALIBRATION_BATCHES:  # a small data set is gone through several times
        for batch in batches():
            if seen == CALIBRATION_BATCHES:
                break
            batch_stats, seen = update(batch_stats, backbone.preprocess(batch["image"])), seen + 1
    return dataclasses.replace(backbone, variables={"params": backbone.variables["params"], "batch_stats": batch_stats})


def score_features(
    name: str, features: Features, *, batches: Mapping[str, Batches], num_classes: int, protocols: tuple[str, ...]
) -> Scores:
    begun = time.perf_counter()
    (train_h, train_y), (test_h, test_y) = (labeled(*extract(features, batches[s](), BATCH)) for s in ("train", "test"))
    scores: Scores = {}
    if "knn" in protocols:
        predictions = knn.weighted_knn(
            train_h, train_y, test_h, num_classes=num_classes, k=KNN_K, temperature=KNN_TEMPERATURE
        )
        for k, predicted in predictions.items():
            scores[f"knn/k{k}_t{KNN_TEMPERATURE}/top1"] = {
                "mean": 100 * float(np.mean(predicted == test_y)),
                "std": 0.0,
            }
    if "linear" in protocols:
        fewest = int(np.bincount(train_y, minlength=num_classes).min())
        for per_class in LABELS_PER_CLASS:
            if per_class is not None and per_class > fewest:
                print(f"linear probe with {per_class} labels per class left out: a class has only {fewest} images")
                continue
            probe = linear.linear_probe(train_h, train_y, test_h, test_y, num_classes=num_classes, per_class=per_class)
            label_set = "all" if per_class is None else f"{per_class}_per_class"
            scores[f"linear/{label_set}/top1"] = {
                "mean": probe.mean,
                "std": probe.std,
                "accuracies": list(probe.accuracies),
                "strengths": list(probe.strengths),
            }
    summary = "  ".join(f"{protocol} {score['mean']:.1f}" for protocol, score in scores.items())
    print(f"{name} ({train_h.shape[1]} dimensions, {time.perf_counter() - begun:.0f} s): {summary}", flush=True)
    return scores


def score_finetuning(
    name: str,
    backbone: Backbone,
    train: sources.Source,
    test: sources.Source,
    config: ConfigDict,
    labels_per_class: Sequence[int] = FINETUNE_LABELS_PER_CLASS,
) -> Scores:
    scores: Scores = {}
    begun, size = time.perf_counter(), tuple(config.data.image_size)
    recipe = Recipe(Augmentation(size=size, crop_area=FINETUNE_CROP_AREA))
    fewest = int(np.bincount(train.labels[train.labels >= 0], minlength=len(train.class_names)).min())
    for per_class in labels_per_class:
        if per_class > fewest:
            print(f"fine-tuning with {per_class} labels per class left out: a class has only {fewest} images")
            continue
        tuned = finetune(backbone, train, test, recipe=recipe, image_size=size, per_class=per_class)
        accuracies = tuned.accuracies[:, -1]
        scores[f"finetune/{per_class}_per_class/top1"] = {
            "mean": float(np.mean(accuracies)),
            "std": float(np.std(accuracies, ddof=1)),
            "accuracies": accuracies.tolist(),
            "learning_rate": tuned.learning_rate,
            "steps": recipe.steps,
        }
    summary = "  ".join(f"{protocol} {score['mean']:.1f}" for protocol, score in scores.items())
    print(f"{name} fine-tuned ({time.perf_counter() - begun:.0f} s): {summary}", flush=True)
    return scores


def labeled(h: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return h[labels >= 0], labels[labels >= 0]


def best_of(variants: Mapping[str, Scores]) -> Scores:
    """For each protocol the best variant's score, with its name."""
    best: Scores = {}
    for name, scores in variants.items():
        for protocol, score in scores.items():
            if protocol not in best or score["mean"] > best[protocol]["mean"]:
                best[protocol] = {**score, "variant": name}
    return best


def save_embeddings(
    workdir: Path, batches: Batches, h: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]
) -> None:
    """samples/embeddings.npz: the first test images, small, with their features."""
    images: list[np.ndarray] = []
    for batch in batches():
        images.append(shrink(batch["image"], SAMPLE_SIDE))
        if sum(map(len, images)) >= SAMPLES:
            break
    (workdir / "samples").mkdir(exist_ok=True)
    with files.replacing(workdir / "samples" / "embeddings.npz") as file:
        np.savez(
            file,
            images=np.concatenate(images)[:SAMPLES],
            features=h[:SAMPLES],
            labels=labels[:SAMPLES],
            class_names=np.array(class_names, dtype=np.str_),
        )


def print_table(result: Mapping[str, Any]) -> None:
    columns = ("pretrained", "random", "pixels")
    print(f"\n{'top-1 in percent':<32}" + "".join(f"{column:>12}" for column in columns))
    for protocol in result["pretrained"]:
        scores = (result[column].get(protocol) for column in columns)
        row = "".join(f"{score['mean']:>12.1f}" if score else f"{'':>12}" for score in scores)
        print(f"{protocol:<32}{row}")
    print("random: the best of " + ", ".join(result["random_variants"]))


def main(argv: list[str] | None = None) -> None:
    with configs.user_errors():
        flags = configs.read_flags(
            sys.argv[1:] if argv is None else argv,
            program="ssl_jax.evaluate: what the frozen features of a run are worth",
            workdir="of a finished run (required)",
            data="a TFDS name or a folder of images; the run's own data if not given",
            protocols=f"of {', '.join(PROTOCOLS)}, with commas; {','.join(BY_DEFAULT)} if not given",
        )
        if not flags.workdir:
            raise configs.ConfigError("--workdir is missing; give that of a run of ssl_jax.train")
        protocols = tuple(flags.protocols.split(",")) if flags.protocols else BY_DEFAULT
        unknown = set(protocols) - set(PROTOCOLS)
        if unknown:
            raise configs.ConfigError(
                f"--protocols={flags.protocols}: no protocol {sorted(unknown)}; it has {', '.join(PROTOCOLS)}"
            )
        evaluate(Path(flags.workdir), flags.data, protocols)


if __name__ == "__main__":
    main()

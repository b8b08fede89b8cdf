"""Evaluation: python -m ssl_jax.evaluate --workdir DIR [--data NAME_OR_FOLDER] [--protocols knn,linear,finetune]

The pre-trained backbone beside random initialization and the raw pixels, all under the same protocols: its frozen
features by kNN and linear probes, and, where asked for, by the others of evaluation/protocols.py, its patches by an
attentive probe, on corrupted images, and the whole of it fine-tuned. Beside them metrics of the features that take no
labels. Writes DIR/evaluation.json and, for the report, embeddings, predictions and pictures of patches in DIR/samples;
features are kept in DIR/features, so that another protocol finds them there.
"""

import functools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ssl_jax import baselines, build, load_backbone, run, samples
from ssl_jax import config as configs
from ssl_jax.data import pipeline, sources
from ssl_jax.data.augment import Augmentation
from ssl_jax.evaluation import cache, corruption, knn, protocols
from ssl_jax.evaluation import representation as metrics
from ssl_jax.evaluation.attentive import attentive_probe
from ssl_jax.evaluation.features import Batches, extract
from ssl_jax.evaluation.protocols import Labeled, Scores
from ssl_jax.finetune import Recipe, finetune
from ssl_jax.weights import Backbone

BATCH = 512
ATTENTIVE_LABELS_PER_CLASS = (10, 100)
FINETUNE_LABELS_PER_CLASS, FINETUNE_CROP_AREA = (10, 100), (0.5, 1.0)
CORRUPTED_IMAGES = 2000  # of the test set, each by every corruption and severity
# Those of frozen features, and those that take the backbone itself.
OF_BACKBONES = ("attentive", "corruption", "finetune")
PROTOCOLS, BY_DEFAULT = (*protocols.PROTOCOLS, *OF_BACKBONES), ("knn", "linear")  # the others take minutes on a CPU

Features = Callable[[np.ndarray], np.ndarray]  # uint8 [BATCH, height, width, channels] -> [BATCH, dim]


def evaluate(workdir: Path, data: str, names: tuple[str, ...]) -> dict[str, Any]:
    """Writes and returns evaluation.json. `data`: a TFDS name or a folder; "" for the data of the run. `names`: of
    PROTOCOLS."""
    config = run.read_config(workdir)
    if data:
        config.data.update(name="folder", path=data) if Path(data).is_dir() else config.data.update(name=data, path="")
    backbone = configs.call(load_backbone, {}, "--workdir", workdir)
    train, test = build.source_pair(config)
    sources_of = {"train": train, "test": test}
    batches = {split: read_batches(source, config) for split, source in sources_of.items()}
    result: dict[str, Any] = {
        "data": {
            "name": train.name,
            "train_images": len(train),
            "test_images": len(test),
            "classes": list(train.class_names),
        },
        "backbone_sha256": cache.checksum(backbone.variables),
    }

    def kept(split: str) -> tuple[np.ndarray, np.ndarray]:
        key = cache.Key(
            backbone=result["backbone_sha256"],
            architecture=build.model_options(config),
            data=f"{sources_of[split].name} {config.data.path}",
            split=split,
            images=len(sources_of[split]),
            preprocessing={key: configs.plain(config.data[key]) for key in ("image_size", "channels", "mean", "std")},
        )

        def make() -> cache.Arrays:
            return dict(zip(("features", "labels"), extract(backbone.features, batches[split](), BATCH), strict=True))

        found = cache.cached(workdir / "features", key, make)
        return found["features"], found["labels"]

    h, labels = kept("test")
    samples.save_embeddings(workdir, batches["test"], h, labels, train.class_names)
    (workdir / "samples" / "predictions.npz").unlink(missing_ok=True)  # of an earlier evaluation, maybe of other data
    result["metrics"] = {"pretrained": metrics.summary(h)}
    samples.save_patches(workdir, test, tuple(config.data.image_size), backbone, baselines.untrained(config))
    if not train.class_names:
        print(f"{train.name} has no labels, which {' and '.join(names)} measure against; the embeddings are saved")
    else:
        classes = len(train.class_names)

        def score(name: str, backbone: Backbone, names: Sequence[str], of: Labeled) -> Scores:
            found = score_features(name, of, names)
            if "attentive" in names:
                found |= score_attentive(name, backbone, batches, of, len(train) + len(test), config.data.memory_bytes)
            if "corruption" in names:
                found |= score_corruption(name, backbone, batches["test"], of)
            if "finetune" in names:
                found |= score_finetuning(name, backbone, train, test, config)
            return found

        def extracted(features: Features) -> Labeled:
            return as_labeled(*(extract(features, split(), BATCH) for split in batches.values()), classes)

        result["pretrained"] = score("pretrained", backbone, names, as_labeled(kept("train"), (h, labels), classes))
        all_labels = result["pretrained"].get("linear/all/top1", {})
        if "predictions" in all_labels:
            samples.save_predictions(workdir, train.class_names, labels[labels >= 0], all_labels["predictions"])
        result["pixels"] = score_features("pixels", extracted(baselines.pixels), names)
        result["random_variants"] = {}
        for name, untrained in baselines.random_backbones(config, batches["train"]).items():
            of = extracted(untrained.features)
            result["metrics"][f"random, {name}"] = metrics.summary(of.test)
            # Training forgets the statistics that it began with.
            taken = [n for n in names if n != "finetune" or not name.startswith("calibrated")]
            result["random_variants"][name] = score(f"random, {name}", untrained, taken, of)
        result["random"] = best_of(result["random_variants"])
        for scores in (result["pretrained"], result["pixels"], result["random"], *result["random_variants"].values()):
            for one in scores.values():
                one.pop("predictions", None)
        print_table(result)
    if cache.checksum(backbone.variables) != result["backbone_sha256"]:
        raise AssertionError("the evaluation has changed the backbone, so its numbers are of no backbone that there is")
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


def as_labeled(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], num_classes: int) -> Labeled:
    """Of (features, labels), where images without a label have -1."""
    return Labeled(*labeled(*train), *labeled(*test), num_classes)


def score_features(name: str, data: Labeled, names: Sequence[str]) -> Scores:
    """Of those of `names` that are protocols of frozen features. "linear/all/top1" has the "predictions", too."""
    begun = time.perf_counter()
    scores: Scores = {}
    for protocol, measure in protocols.PROTOCOLS.items():
        if protocol in names:
            scores |= measure(data)
    print_scores(f"{name} ({data.train.shape[1]} dimensions)", begun, scores)
    return scores


def score_attentive(
    name: str, backbone: Backbone, batches: Mapping[str, Batches], of: Labeled, images: int, memory_bytes: int
) -> Scores:
    """Of the patches of all `images`, in float16. Left out where they take more than `memory_bytes`."""
    begun, scores = time.perf_counter(), {}
    example = next(iter(batches["train"]()))["image"]
    rows, columns, dim = backbone.patch_features(example[:1]).shape[1:]
    if images * rows * columns * dim * 2 > memory_bytes:
        print(
            f"attentive probe left out: {images} images of {rows}x{columns} patches take more than the "
            f"{memory_bytes:,} bytes of config.data.memory_bytes"
        )
        return scores

    def tokens(images: np.ndarray) -> np.ndarray:
        return backbone.patch_features(images).reshape(len(images), -1, dim)

    train, test = (labeled(*extract(tokens, split(), BATCH, np.float16)) for split in batches.values())
    for per_class in (count for count in ATTENTIVE_LABELS_PER_CLASS if count <= of.fewest):
        probe = attentive_probe(
            *train, *test, num_classes=of.num_classes, heads=getattr(backbone.model, "heads", 1), per_class=per_class
        )
        scores[f"attentive/{per_class}_per_class/top1"] = {
            "mean": float(np.mean(probe.accuracies)),
            "std": float(np.std(probe.accuracies, ddof=1)),
            "accuracies": list(probe.accuracies),
            "learning_rates": list(probe.learning_rates),
        }
    print_scores(f"{name}, its patches", begun, scores)
    return scores


def score_corruption(name: str, backbone: Backbone, test: Batches, of: Labeled) -> Scores:
    """Of a kNN classifier, which is trained on nothing, on corrupted test images: 5 severities of each corruption."""
    begun = time.perf_counter()
    tested: list[tuple[np.ndarray, np.ndarray]] = []
    for batch in test():
        tested.append(labeled(batch["image"], batch["label"]))
        if sum(len(labels) for _, labels in tested) >= CORRUPTED_IMAGES:
            break
    images, labels = (np.concatenate(parts)[:CORRUPTED_IMAGES] for parts in zip(*tested, strict=True))
    k, temperature = protocols.KNN_K[0], protocols.KNN_TEMPERATURE

    def predict(images: np.ndarray) -> np.ndarray:
        h = backbone.features(images, batch_size=BATCH)
        return knn.weighted_knn(
            of.train, of.train_labels, h, num_classes=of.num_classes, k=(k,), temperature=temperature
        )[k]

    found = corruption.robustness(predict, images, labels, batch_size=BATCH)
    values = {"clean": found.clean, "mean": found.mean}
    values |= {kind: float(np.mean(accuracies)) for kind, accuracies in found.accuracies.items()}
    scores = {f"corruption/knn_k{k}/{kind}": dict(mean=value, std=0.0) for kind, value in values.items()}
    print_scores(f"{name}, images corrupted", begun, scores)
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
        if not protocols.enough(fewest, per_class, "fine-tuning"):
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
    print_scores(f"{name}, fine-tuned", begun, scores)
    return scores


def print_scores(name: str, begun: float, scores: Scores) -> None:
    summary = "  ".join(f"{protocol} {score['mean']:.1f}" for protocol, score in scores.items())
    print(f"{name}, {time.perf_counter() - begun:.0f} s: {summary}", flush=True)


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


def print_table(result: Mapping[str, Any]) -> None:
    columns = ("pretrained", "random", "pixels")
    print(f"\n{'in percent':<32}" + "".join(f"{column:>12}" for column in columns))
    for protocol in result["pretrained"]:
        scores = (result[column].get(protocol) for column in columns)
        row = "".join(f"{score['mean']:>12.1f}" if score else f"{'':>12}" for score in scores)
        print(f"{protocol:<32}{row}")
    print("random: the best of " + ", ".join(result["random_variants"]))
    print("\nwithout labels: " + ", ".join(f"{k} {v:.3g}" for k, v in result["metrics"]["pretrained"].items()))


def main(argv: list[str] | None = None) -> None:
    with configs.user_errors(pipeline.ImagesError):
        flags = configs.read_flags(
            sys.argv[1:] if argv is None else argv,
            program="ssl_jax.evaluate: what the frozen features of a run are worth",
            workdir="of a finished run (required)",
            data="a TFDS name or a folder of images; the run's own data if not given",
            protocols=f"of {', '.join(PROTOCOLS)}, with commas; {','.join(BY_DEFAULT)} if not given",
        )
        if not flags.workdir:
            raise configs.ConfigError("--workdir is missing; give that of a run of ssl_jax.train")
        names = tuple(flags.protocols.split(",")) if flags.protocols else BY_DEFAULT
        unknown = set(names) - set(PROTOCOLS)
        if unknown:
            raise configs.ConfigError(
                f"--protocols={flags.protocols}: no protocol {sorted(unknown)}; it has {', '.join(PROTOCOLS)}"
            )
        evaluate(Path(flags.workdir), flags.data, names)


if __name__ == "__main__":
    main()

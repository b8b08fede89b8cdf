"""Evaluation: ssl_jax evaluate --workdir DIR [--data NAME_OR_FOLDER] [--protocols knn,linear,finetune]

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
from ssl_jax.evaluation.accuracy import majority
from ssl_jax.evaluation.attentive import attentive_probe
from ssl_jax.evaluation.block_probes import BLOCK_PROBES, BlockProbe
from ssl_jax.evaluation.features import Batches, extract
from ssl_jax.evaluation.protocols import Labeled, Scores
from ssl_jax.finetune import Recipe, finetune, mae_recipe
from ssl_jax.models.vit import ViT
from ssl_jax.weights import Backbone

BATCH = 512
ATTENTIVE_LABELS_PER_CLASS = (10, 100)
FINETUNE_LABELS_PER_CLASS, FINETUNE_CROP_AREA = (10, 100), (0.5, 1.0)
CORRUPTED_IMAGES = 2000  # of the test set, each by every corruption and severity
# Those of frozen features, and those that take the backbone itself.
OF_BLOCKS = {f"probe_{name}": name for name in BLOCK_PROBES}
OF_BACKBONES = (*OF_BLOCKS, "attentive", "corruption", "finetune", "finetune_mae")
PROTOCOLS, BY_DEFAULT = (*protocols.PROTOCOLS, *OF_BACKBONES), ("knn", "linear")  # the others take minutes on a CPU

Features = Callable[[np.ndarray], np.ndarray]  # uint8 [BATCH, height, width, channels] -> [BATCH, dim]


def evaluate(
    workdir: Path,
    data: str = "",
    names: tuple[str, ...] = BY_DEFAULT,
    pair: tuple[sources.Source, sources.Source] | None = None,
) -> dict[str, Any]:
    """Writes and returns evaluation.json.

    Args:
      data: a TFDS name or a folder; "" for the data of the run.
      names: of PROTOCOLS.
      pair: (training, test) images, in place of `data`; their features are not kept, as a digest of arrays does not
        tell them apart.
    Raises: ConfigError where neither is given, and the run's config does not name the images that it was trained on.
    """
    config = run.read_config(workdir)
    if data:
        config.data.update(name="folder", path=data) if Path(data).is_dir() else config.data.update(name=data, path="")
    backbone = configs.call(load_backbone, {}, "--workdir", workdir)
    train, test = pair or (build.source_pair(config) if data else own_pair(workdir, config))
    sources_of = {"train": train, "test": test}
    batches = {split: read_batches(source, config) for split, source in sources_of.items()}
    result: dict[str, Any] = {
        "data": {
            "name": train.name,
            "kind": type(train).__name__,
            "digest": train.digest(),
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
            data=f"{sources_of[split].name} {sources_of[split].digest()}",
            split=split,
            images=len(sources_of[split]),
            preprocessing={key: configs.plain(config.data[key]) for key in ("image_size", "channels", "mean", "std")},
        )

        def make() -> cache.Arrays:
            return dict(zip(("features", "labels"), extract(backbone.features, batches[split](), BATCH), strict=True))

        found = make() if pair else cache.cached(workdir / "features", key, make)
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
        largest = majority(labels[labels >= 0], classes)
        result["data"]["majority"] = {"class": train.class_names[largest.label], "percent": largest.percent}

        def score(name: str, backbone: Backbone, names: Sequence[str], of: Labeled) -> Scores:
            found = score_features(name, of, names)
            if set(OF_BLOCKS) & set(names):
                found |= score_blocks(name, backbone, batches, classes, names)
            if "attentive" in names:
                found |= score_attentive(name, backbone, batches, of, len(train) + len(test), config.data.memory_bytes)
            if "corruption" in names:
                found |= score_corruption(name, backbone, batches["test"], of)
            if "finetune" in names:
                found |= score_finetuning(name, backbone, train, test, config)
            if "finetune_mae" in names:
                found |= score_mae_finetuning(name, backbone, train, test, config)
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
            taken = [n for n in names if not (n.startswith("finetune") and name.startswith("calibrated"))]
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


def own_pair(workdir: Path, config: ConfigDict) -> tuple[sources.Source, sources.Source]:
    """(training, test) images of the run itself. Raises: ConfigError where its config does not name them."""
    data = config.data.path or config.data.name
    try:
        train, test = build.source_pair(config)
        found = [train, build.whole_source(config)]
    except configs.ConfigError:
        if run.trained_on(workdir).get("given"):
            run.check_measured(workdir, [], data)
        raise
    run.check_measured(workdir, found, data)
    return train, test


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


def score_blocks(
    name: str, backbone: Backbone, batches: Mapping[str, Batches], num_classes: int, names: Sequence[str]
) -> Scores:
    """By those of `names` that probe a ViT's last blocks. What a model lacks for a probe, it says."""
    begun, scores, model = time.perf_counter(), {}, backbone.model
    for protocol, probe in OF_BLOCKS.items():
        if protocol not in names:
            continue
        made = BLOCK_PROBES[probe]
        if reason := lacks(model, made):
            print(f"{protocol} left out: {reason}")
            continue
        pool = "cls_and_mean" if any(tokens.mean for tokens in made.tokens) else "cls"
        features = functools.partial(
            backbone.block_features,
            batch_size=BATCH,
            blocks=made.blocks,
            pool=pool if model.class_token else "mean",
            norm=made.norm,
        )
        data = as_labeled(*(extract(features, read(), BATCH) for read in batches.values()), num_classes)
        of = "class tokens" if model.class_token else "means of the patches"
        scores |= protocols.blocks(data, probe, model.dim, of)
    if scores:
        print_scores(f"{name}, its last blocks", begun, scores)
    return scores


def lacks(model: Any, probe: BlockProbe) -> str:
    """What a model lacks for a probe of its last blocks; "" if nothing."""
    if not isinstance(model, ViT):
        return f"{type(model).__name__} has no blocks of tokens"
    if not (model.class_token or probe.patches):
        return "the model has no class token"
    if model.depth < probe.blocks:
        return f"the model has {model.depth} blocks, fewer than {probe.blocks}"
    if probe.norm and model.pool == "mean":
        return 'a model of pool="mean" has no LayerNorm for single tokens'
    return ""


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
        scores[f"attentive/{per_class}_per_class/top1"] = protocols.score(probe.predictions, test[1]) | {
            "accuracies": list(probe.accuracies),
            "learning_rates": list(probe.learning_rates),
        }
    print_scores(f"{name}, its patches", begun, scores)
    return scores


def score_corruption(name: str, backbone: Backbone, test: Batches, of: Labeled) -> Scores:
    """Of a kNN classifier, which is trained on nothing, on corrupted test images: 5 severities of each corruption."""
    begun = time.perf_counter()
    k, temperature = protocols.KNN_K[0], protocols.KNN_TEMPERATURE
    if not protocols.enough_neighbors(len(of.train), k):
        return {}
    images, labels = spread(test, len(of.test), CORRUPTED_IMAGES)

    def predict(images: np.ndarray) -> np.ndarray:
        h = backbone.features(images, batch_size=BATCH)
        return knn.weighted_knn(
            of.train, of.train_labels, h, num_classes=of.num_classes, k=(k,), temperature=temperature
        )[k]

    found = corruption.robustness(predict, images, labels, batch_size=BATCH)
    measured = {"clean": ([found.clean], [found.clean_class_mean])}
    measured["mean"] = ([*found.accuracies.values()], [*found.class_means.values()])
    measured |= {kind: (accuracies, found.class_means[kind]) for kind, accuracies in found.accuracies.items()}
    scores = {
        f"corruption/knn_k{k}/{kind}": dict(
            mean=float(np.mean(accuracies)), std=0.0, class_mean=float(np.mean(class_means))
        )
        for kind, (accuracies, class_means) in measured.items()
    }
    print_scores(f"{name}, images corrupted", begun, scores)
    return scores


def spread(batches: Batches, count: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """(images, labels) of at most `most` of the `count` images with a label, at equal distances: a folder is sorted by
    class, and its first images are of one."""
    chosen, seen, parts = np.linspace(0, count - 1, min(count, most)).round().astype(int), 0, []
    for batch in batches():
        images, labels = labeled(batch["image"], batch["label"])
        rows = chosen[(chosen >= seen) & (chosen < seen + len(labels))] - seen
        parts.append((images[rows], labels[rows]))
        seen += len(labels)
    images, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    return images, labels


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
            "class_mean": float(np.mean(tuned.class_means[:, -1])),
            "accuracies": accuracies.tolist(),
            "learning_rate": tuned.learning_rate,
            "steps": recipe.steps,
        }
    print_scores(f"{name}, fine-tuned", begun, scores)
    return scores


def score_mae_finetuning(
    name: str, backbone: Backbone, train: sources.Source, test: sources.Source, config: ConfigDict
) -> Scores:
    """Of a ViT with all labels; hours on a CPU."""
    if not isinstance(backbone.model, ViT):
        print(f"finetune_mae left out: its recipe is of ViTs, and {type(backbone.model).__name__} is none")
        return {}
    begun, size = time.perf_counter(), tuple(config.data.image_size)
    recipe = mae_recipe(backbone.model, int(np.sum(train.labels >= 0)), size)
    tuned = finetune(backbone, train, test, recipe=recipe, image_size=size, per_class=None)
    scores: Scores = {
        "finetune_mae/all/top1": {
            "mean": float(tuned.accuracies[0, -1]),
            "std": 0.0,
            "class_mean": float(tuned.class_means[0, -1]),
            "learning_rate": tuned.learning_rate,
            "steps": recipe.steps,
            "batch_size": recipe.batch_size,
        }
    }
    print_scores(f"{name}, fine-tuned as MAE", begun, scores)
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
    """Accuracies, and in brackets the mean over classes where it differs, as it does if classes differ in size."""
    columns, largest = ("pretrained", "random", "pixels"), result["data"]["majority"]
    print(f"\n{'in percent':<32}" + "".join(f"{column:>12}{'':8}" for column in columns).rstrip())
    found = [result[column].get(protocol) for protocol in result["pretrained"] for column in columns]
    for protocol in result["pretrained"]:
        cells = (cell(result[column].get(protocol)) for column in columns)
        print(f"{protocol:<32}{''.join(cells)}".rstrip())
    if any(score and class_mean_of(score) for score in found):
        print(f"in brackets: each class counts alike. Always {largest['class']!r}: {largest['percent']:.1f}")
    else:
        print(f"the largest class has {largest['percent']:.1f} of the test images")
    print("random: the best of " + ", ".join(result["random_variants"]))
    print("\nwithout labels: " + ", ".join(f"{k} {v:.3g}" for k, v in result["metrics"]["pretrained"].items()))


def cell(score: Mapping[str, Any] | None) -> str:
    if not score:
        return " " * 20
    return f"{score['mean']:>12.1f}{class_mean_of(score):>8}"


def class_mean_of(score: Mapping[str, Any]) -> str:
    """ "(61.2)"; "" where it is the accuracy itself, or the score is none."""
    differs = abs(score["mean"] - score.get("class_mean", score["mean"])) >= 0.05
    return f"({score['class_mean']:.1f})" if differs else ""


def main(argv: list[str] | None = None) -> None:
    with configs.user_errors(pipeline.ImagesError):
        flags = configs.read_flags(
            sys.argv[1:] if argv is None else argv,
            program="ssl_jax evaluate: what the frozen features of a run are worth",
            workdir="of a finished run (required)",
            data="a TFDS name or a folder of images; the data that the config of the run names if not given",
            protocols=f"of {', '.join(PROTOCOLS)}, with commas; {','.join(BY_DEFAULT)} if not given",
        )
        if not flags.workdir:
            raise configs.ConfigError("--workdir is missing; give that of a run of ssl_jax train")
        names = tuple(flags.protocols.split(",")) if flags.protocols else BY_DEFAULT
        unknown = set(names) - set(PROTOCOLS)
        if unknown:
            raise configs.ConfigError(
                f"--protocols={flags.protocols}: no protocol {sorted(unknown)}; it has {', '.join(PROTOCOLS)}"
            )
        evaluate(Path(flags.workdir), flags.data, names)


if __name__ == "__main__":
    main()

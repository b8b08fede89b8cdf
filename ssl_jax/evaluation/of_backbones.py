"""Protocols that need the backbone itself: for its blocks, its patches, corrupted images, and fine-tuning."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import numpy as np

from ssl_jax.evaluation import block_probes, corruption, knn
from ssl_jax.evaluation.attentive import attentive_probe
from ssl_jax.evaluation.block_probes import BLOCK_PROBES, BlockProbe
from ssl_jax.evaluation.features import BATCH, Batches, extract
from ssl_jax.evaluation.finetuning import measure_finetuning
from ssl_jax.evaluation.finetuning_recipes import Recipe, mae_recipe, small_recipe
from ssl_jax.evaluation.of_features import KNN_K, KNN_TEMPERATURE, of_steps
from ssl_jax.evaluation.subject import Scores, Subject, as_labeled, enough, enough_neighbors, score
from ssl_jax.models import maps
from ssl_jax.models.abilities import has_tokens
from ssl_jax.models.vit import ViT

ATTENTIVE_LABELS_PER_CLASS = (10, 100)
FINETUNE_LABELS_PER_CLASS = (10, 100)
CORRUPTED_IMAGES = 2000  # test images; each is corrupted by every corruption at every severity


def blocks(subject: Subject, name: str) -> Scores:
    """A paper's linear probe of a ViT's last blocks. name: in BLOCK_PROBES."""
    probe, backbone = BLOCK_PROBES[name], subject.network
    model = backbone.model
    pool = "cls_and_mean" if any(tokens.mean for tokens in probe.tokens) else "cls"
    features = functools.partial(
        backbone.block_features,
        batch_size=BATCH,
        blocks=probe.blocks,
        pool=pool if model.class_token else "mean",
        norm=probe.norm,
    )
    train, test = (extract(features, read(), BATCH) for read in subject.images.batches.values())
    data = as_labeled(train, test, subject.images.train)
    found, tokens = block_probes.block_probe(
        *data.arrays, num_classes=data.num_classes, probe=probe, dim=model.dim, groups=data.groups
    )
    where = "" if probe.norm else ", before the final LayerNorm"
    taken = tokens.describe("class tokens" if model.class_token else "means of the patches") + where
    return {f"probe/{name}/top1": of_steps(found, data.test_labels, taken)}


def lacks_blocks(model: nn.Module, probe: BlockProbe) -> str:
    """What a model lacks for a probe of its last blocks; "" if nothing."""
    if not isinstance(model, ViT):  # only a ViT gives the tokens of its blocks
        return f"{type(model).__name__} has no blocks of tokens"
    if not (model.class_token or probe.patches):
        return "the model has no class token"
    if model.depth < probe.blocks:
        return f"the model has {model.depth} blocks, fewer than {probe.blocks}"
    if probe.norm and model.pool == "mean":
        return 'a model of pool="mean" has no LayerNorm for single tokens'
    return ""


def attentive(subject: Subject) -> Scores:
    """Attentive probes of the patches of all images, in float16. Left out if they take more than memory_bytes."""
    backbone, of, images = subject.network, subject.features, subject.images
    example = next(iter(images.batches["train"]()))["image"]
    rows, columns, dim = backbone.patch_features(example[:1]).shape[1:]
    count = len(images.train) + len(images.test)
    if count * rows * columns * dim * 2 > images.memory_bytes:
        print(
            f"attentive probe left out: {count} images of {rows}x{columns} patches take more than "
            f"memory_bytes={images.memory_bytes:,}; raise it (for a run, config.data.memory_bytes)"
        )
        return {}

    def tokens(images: np.ndarray) -> np.ndarray:
        return backbone.patch_features(images).reshape(len(images), -1, dim)

    train, test = (extract(tokens, read(), BATCH, np.float16) for read in images.batches.values())
    data = as_labeled(train, test, images.train)
    scores: Scores = {}
    for per_class in (count for count in ATTENTIVE_LABELS_PER_CLASS if count <= of.fewest):
        probe = attentive_probe(
            *data.arrays,
            num_classes=data.num_classes,
            heads=getattr(backbone.model, "heads", 1),
            per_class=per_class,
            groups=data.groups,
        )
        scores[f"attentive/{per_class}_per_class/top1"] = score(probe.predictions, data.test_labels) | {
            "accuracies": list(probe.accuracies),
            "learning_rates": list(probe.learning_rates),
        }
    return scores


def lacks_patches(model: nn.Module) -> str:
    return "" if maps.has_patch_map(model) else f"{type(model).__name__} has no features of patches"


def corrupted(subject: Subject) -> Scores:
    """Accuracy of kNN, which needs no training, on corrupted test images: 5 severities of each corruption."""
    backbone, of = subject.network, subject.features
    k = KNN_K[0]
    if not enough_neighbors(len(of.train), k):
        return {}
    images, labels = spread(subject.images.batches["test"], len(of.test), CORRUPTED_IMAGES)
    if images.dtype != np.uint8 or images.shape[-1] not in (1, 3):
        print(
            f"corruptions left out: they are of 8-bit photos, gray or RGB, and the images are {images.dtype} with "
            f"{images.shape[-1]} channels"
        )
        return {}

    def predict(images: np.ndarray) -> np.ndarray:
        h = backbone.features(images, batch_size=BATCH)
        return knn.weighted_knn(
            of.train, of.train_labels, h, num_classes=of.num_classes, k=(k,), temperature=KNN_TEMPERATURE
        )[k]

    found = corruption.robustness(predict, images, labels, batch_size=BATCH)
    measured: dict[str, tuple[Sequence[Any], Sequence[Any]]] = {"clean": ([found.clean], [found.clean_class_mean])}
    measured["mean"] = ([*found.accuracies.values()], [*found.class_means.values()])
    measured |= {kind: (accuracies, found.class_means[kind]) for kind, accuracies in found.accuracies.items()}
    return {
        f"corruption/knn_k{k}/{kind}": dict(
            mean=float(np.mean(accuracies)), std=0.0, class_mean=float(np.mean(class_means))
        )
        for kind, (accuracies, class_means) in measured.items()
    }


def spread(batches: Batches, count: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """(images, labels) of at most `most` of the `count` images with a label. They are spaced evenly, as a folder is
    sorted by class: its first images are all of one class."""
    chosen, seen, parts = np.linspace(0, count - 1, min(count, most)).round().astype(int), 0, []
    for batch in batches():
        images, labels = (batch[name][batch["label"] >= 0] for name in ("image", "label"))
        rows = chosen[(chosen >= seen) & (chosen < seen + len(labels))] - seen
        parts.append((images[rows], labels[rows]))
        seen += len(labels)
    images, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    return images, labels


def finetuned(
    subject: Subject, labels_per_class: tuple[int, ...] = FINETUNE_LABELS_PER_CLASS, recipe: Recipe | None = None
) -> Scores:
    """Fine-tuning with some labels of each class. recipe: `small_recipe` if not given."""
    images, scores = subject.images, {}
    recipe = recipe or small_recipe(images.image_size)
    labels = images.train.labels
    assert labels is not None  # features are labeled
    fewest = int(np.bincount(labels[labels >= 0], minlength=len(images.train.class_names)).min())
    for per_class in labels_per_class:
        if not enough(fewest, per_class, "fine-tuning"):
            continue
        tuned = measure_finetuning(
            subject.network,
            images.train,
            images.test,
            recipe=recipe,
            image_size=images.image_size,
            per_class=per_class,
            memory_bytes=images.memory_bytes,
        )
        accuracies = tuned.accuracies[:, -1]
        scores[f"finetune/{per_class}_per_class/top1"] = {
            "mean": float(np.mean(accuracies)),
            "std": float(np.std(accuracies, ddof=1)),
            "class_mean": float(np.mean(tuned.class_means[:, -1])),
            "accuracies": accuracies.tolist(),
            "learning_rate": tuned.learning_rate,
            "steps": recipe.steps,
        }
    return scores


def finetuned_as_mae(subject: Subject) -> Scores:
    """MAE's fine-tuning of a ViT with all labels. Takes hours on a CPU."""
    backbone, images = subject.network, subject.images
    labels = images.train.labels
    assert labels is not None  # features are labeled
    recipe = mae_recipe(backbone.model, int(np.sum(labels >= 0)), images.image_size)
    tuned = measure_finetuning(
        backbone,
        images.train,
        images.test,
        recipe=recipe,
        image_size=images.image_size,
        per_class=None,
        memory_bytes=images.memory_bytes,
    )
    return {
        "finetune_mae/all/top1": {
            "mean": float(tuned.accuracies[0, -1]),
            "std": 0.0,
            "class_mean": float(tuned.class_means[0, -1]),
            "learning_rate": tuned.learning_rate,
            "steps": recipe.steps,
            "batch_size": recipe.batch_size,
        }
    }


def lacks_tokens(model: nn.Module) -> str:
    if has_tokens(model) and hasattr(model, "drop_path"):
        return ""
    return f"its recipe is for ViTs, and {type(model).__name__} is not one"

"""The protocols in words: what each is called, and what decides there."""

import re

# Pattern of a protocol's key -> (name, what decides); {} stand for the groups of the pattern.
NAMES = {
    r"knn/k(\d+)_t0.07/top1": ("kNN, {} neighbors", "a vote of the {} most similar training images"),
    r"knn/k(\d+)_t([\d.]+)/top1": (
        "kNN, {} neighbors, temperature {}",
        "a vote of the {} most similar training images at temperature {}",
    ),
    r"linear/(\d+)_per_class/top1": ("Linear, {} labels per class", "a linear classifier that saw {} labels per class"),
    r"linear/(\d+)_percent/top1": ("Linear, {}% of the labels", "a linear classifier that saw {}% of the labels"),
    r"linear/all/top1": ("Linear, all labels", "a linear classifier that saw every label"),
    r"prototypes/1_per_class/top1": ("Class means, 1 label per class", "the nearest of one labelled image per class"),
    r"prototypes/(\d+)_per_class/top1": (
        "Class means, {} labels per class",
        "the nearest mean of {} labelled images per class",
    ),
    r"prototypes/(\d+)_way_1_shot/top1": (
        "Few-shot: {} classes, 1 label each",
        "the nearest of {} labelled images, one per class",
    ),
    r"prototypes/(\d+)_way_(\d+)_shot/top1": (
        "Few-shot: {} classes, {} labels each",
        "the nearest class mean among {} classes with {} labels each",
    ),
    r"clustering/(\w+)/accuracy": ("Clusters ({}), accuracy", "the best match of k-means clusters ({}) with classes"),
    r"clustering/(\w+)/(\w+)": ("Clusters ({}), {}", "the agreement of k-means clusters ({}) with classes, {},"),
    r"retrieval/map": ("Retrieval, average precision", "retrieval of training images"),
    r"retrieval/recall_at_(\d+)": ("Retrieval, a match in {}", "the class of the {} most similar training images"),
    r"probe/(\w+)/top1": ("Probe by the recipe {}", "a linear classifier trained by the recipe {}"),
    r"attentive/(\d+)_per_class/top1": (
        "Attentive probe, {} labels per class",
        "an attentive probe that saw {} labels per class",
    ),
    r"corruption/knn_k(\d+)/clean": ("Corruption, kNN {}: none", "a vote of the {} most similar training images"),
    r"corruption/knn_k(\d+)/mean": ("Corruption, kNN {}: mean", "on corrupted images, a vote of {} training images"),
    r"corruption/knn_k(\d+)/(\w+)": ("Corruption, kNN {}: {}", "a vote of {} training images, under {},"),
    r"finetune/(\d+)_per_class/top1": (
        "Fine-tuned, {} labels per class",
        "the whole network trained on {} labels per class",
    ),
    r"finetune/all/top1": ("Fine-tuned, all labels", "the whole network trained on every label"),
    r"finetune_mae/all/top1": (
        "Fine-tuned as MAE, all labels",
        "the whole network trained on every label as MAE is",
    ),
    # Of images with several labels or with measurements: means over the outputs.
    r"multilabel/linear/map": ("Linear, average precision", "a linear classifier of each label"),
    r"multilabel/linear/auroc": ("Linear, area under the ROC curve", "a linear classifier of each label"),
    r"regression/ridge/r2": ("Linear, variance explained", "a linear prediction of each measurement"),
}


def describe(protocol: str) -> tuple[str, str]:
    """(name, what decides) of a protocol's key, as "linear/10_per_class/top1". An unknown one is called by its key."""
    for pattern, (name, judge) in NAMES.items():
        if match := re.fullmatch(pattern, protocol):
            groups = [group.replace("_", " ") for group in match.groups()]
            return name.format(*groups), judge.format(*groups)
    return protocol, f"the protocol {protocol}"

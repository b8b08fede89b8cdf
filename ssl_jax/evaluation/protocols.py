"""The protocols by name: what each measures, what it needs, and the function that computes its scores."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Literal

import flax.linen as nn

from ssl_jax.evaluation import of_backbones, of_features
from ssl_jax.evaluation.block_probes import BLOCK_PROBES
from ssl_jax.evaluation.probe_recipes import RECIPES
from ssl_jax.evaluation.subject import Labeled, Scores, Subject

# What a protocol needs from a subject. "features": frozen features alone; raw pixels serve, too. The others need a
# network: "blocks" for the features of its last blocks, "patches" for those of patches, "images" for those of other
# images. "training" trains the network.
Need = Literal["features", "blocks", "patches", "images", "training"]
ALIKE = {
    "features": "{subject.name} ({dim} dimensions)",
    "blocks": "{subject.name}, its last blocks",
    "patches": "{subject.name}, its patches",
    "images": "{subject.name}, images corrupted",
    "training": "{subject.name}, fine-tuned",
}


@dataclasses.dataclass(frozen=True)
class Protocol:
    """measures: in words. score: subject -> scores. lacks: model -> in words, what the model lacks for this protocol;
    "" if nothing."""

    measures: str
    needs: Need
    score: Callable[[Subject], Scores]
    lacks: Callable[[nn.Module], str] = lambda model: ""


def _frozen(measures: str, score: Callable[[Labeled], Scores]) -> Protocol:
    return Protocol(measures, "features", lambda subject: score(subject.features))


PROTOCOLS: dict[str, Protocol] = {
    "knn": _frozen("kNN, weighted by similarity", of_features.weighted_knn),
    "knn_sweep": _frozen("kNN for all k and temperatures that InstDisc and DINO report", of_features.knn_sweep),
    "linear": _frozen("linear probes with 10, 100 and all labels per class", of_features.linear_probes),
    "low_shot": _frozen("linear probes with 2 and 5 labels per class, 1 and 10 percent", of_features.low_shot),
    "prototypes": _frozen("the nearest class mean, and few-shot episodes", of_features.nearest_prototypes),
    "clustering": _frozen("agreement of k-means clusters with the classes", of_features.cluster),
    "retrieval": _frozen("whether the most similar training images are of the class", of_features.retrieve),
    **{
        f"probe_{recipe}": _frozen(
            f"a linear probe by the recipe {recipe}", functools.partial(of_features.sgd, recipe=recipe)
        )
        for recipe in RECIPES
    },
    **{
        f"probe_{name}": Protocol(
            f"a linear probe of the last blocks by the recipe {probe.recipe}",
            "blocks",
            functools.partial(of_backbones.blocks, name=name),
            functools.partial(of_backbones.lacks_blocks, probe=probe),
        )
        for name, probe in BLOCK_PROBES.items()
    },
    "attentive": Protocol(
        "an attentive probe of the patches", "patches", of_backbones.attentive, of_backbones.lacks_patches
    ),
    "corruption": Protocol("kNN on corrupted test images", "images", of_backbones.corrupted),
    "finetune": Protocol("fine-tuning with 10 and 100 labels per class", "training", of_backbones.finetuned),
    "finetune_mae": Protocol(
        "MAE's fine-tuning with all labels", "training", of_backbones.finetuned_as_mae, of_backbones.lacks_tokens
    ),
}
BY_DEFAULT = ("knn", "linear")  # the others take minutes on a CPU


def check(names: Sequence[str]) -> None:
    """Raises: ValueError for names that PROTOCOLS does not have."""
    if unknown := sorted(set(names) - set(PROTOCOLS)):
        raise ValueError(f"there is no protocol {', '.join(map(repr, unknown))}; choose from {', '.join(PROTOCOLS)}")


def measure(subject: Subject, names: Sequence[str]) -> Scores:
    """The subject's scores by those protocols of `names` that can be measured on it, in the order of PROTOCOLS.

    Prints the scores as they come, and the protocols left out because the model lacks something. "linear/all/top1" also
    has "predictions", the predicted classes of the test images.
    """
    scores: Scores = {}
    for need, heading in ALIKE.items():
        begun, found = time.perf_counter(), {}
        for name, protocol in PROTOCOLS.items():
            if name not in names or protocol.needs != need or (need != "features" and subject.backbone is None):
                continue
            if reason := subject.backbone and protocol.lacks(subject.backbone.model):
                print(f"{name} left out: {reason}")
            else:
                found |= protocol.score(subject)
        if found:
            summary = "  ".join(f"{name} {score['mean']:.1f}" for name, score in found.items())
            made = heading.format(subject=subject, dim=subject.features.train.shape[1])
            print(f"{made}, {time.perf_counter() - begun:.0f} s: {summary}", flush=True)
        scores |= found
    return scores

"""Evaluates a backbone, and for comparison random initialization and the raw pixels, under the same protocols."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ssl_jax.data.sources import Source
from ssl_jax.data.threads import one_ahead
from ssl_jax.data.uniform import Uniform
from ssl_jax.evaluation import baselines as untrained_networks
from ssl_jax.evaluation import cache, protocols, samples, targets
from ssl_jax.evaluation.accuracy import majority
from ssl_jax.evaluation.features import BATCH, Extracted, check_windows, extract, over_windows
from ssl_jax.evaluation.protocols import BY_DEFAULT
from ssl_jax.evaluation.subject import Images, Scores, Subject, as_labeled, labeled
from ssl_jax.health import representation as metrics
from ssl_jax.paths import AnyPath
from ssl_jax.weights import Backbone

BASELINES = ("random", "pixels")
COLUMNS = ("pretrained", *BASELINES)

Features = Callable[[np.ndarray], np.ndarray]  # [BATCH, height, width, channels] -> [BATCH, dim]


class Evaluation(dict[str, Any]):
    """What evaluation.json holds. As text, a table of accuracies in percent.

    "data": name, kind and digest of the training images; how many train and test images there are; the classes, and the
    largest one in the test set.
    "backbone": what was measured and how it was given images, see `Backbone.described`.
    "metrics": label-free metrics of the test features, for "pretrained" and each untrained network.
    "pretrained", "random" (for each protocol the best of "random_variants") and "pixels": protocol -> score, see
    `subject.Scores`. Baselines that were not requested are missing. All scores are missing if the images have no
    labels, and nothing else that is to be predicted (`Source.targets`).
    """

    def __str__(self) -> str:
        without_labels = ", ".join(f"{name} {value:.3g}" for name, value in self["metrics"]["pretrained"].items())
        if "pretrained" not in self:
            return f"{self['data']['name']} has no labels to measure against\n\nwithout labels: {without_labels}"
        return "\n".join([*_table(self), f"\nwithout labels: {without_labels}"])


def evaluate_backbone(
    backbone: Backbone,
    train: Source,
    test: Source,
    *,
    protocols: Sequence[str] = BY_DEFAULT,
    baselines: Sequence[str] = BASELINES,
    image_size: tuple[int, int] | None = None,
    memory_bytes: int = 2**31,
    seed: int = 0,
    windows: str = "mean",
    features_dir: AnyPath | None = None,
    samples_dir: AnyPath | None = None,
) -> Evaluation:
    """Evaluates the backbone and the baselines under the same protocols.

    Args:
      backbone: frozen; protocols that train it train a copy.
      train, test: images, of the same classes. Images with several labels each, or with measurements, are measured as
        `targets.measure` says, whatever `protocols`. Without either, only the metrics that need no labels are measured.
      protocols: names in `protocols.PROTOCOLS`.
      baselines: names in BASELINES: "random", untrained networks of the backbone's architecture, and "pixels".
      image_size: (height, width) in pixels that images are read at; the backbone's own if not given.
      memory_bytes: images are kept decoded, and the attentive probe is measured, if they take no more than this.
      seed: of the untrained networks.
      windows: of images that are windows of larger ones (see `ssl_jax.data.windows`), "mean": frozen features are means
        over the windows of each larger image; "all": each window is an image. Protocols that need more than frozen
        features, and metrics without labels, always take each window.
      features_dir: where the backbone's features are kept for another evaluation; None: nowhere. Features of an
        architecture without a name in `models.MODELS` are not kept.
      samples_dir: where embeddings, predictions and pictures of patches go, for the report; None: nowhere.
    Raises: ValueError for unknown names, an unknown image size or normalization, and for images that do not fit.
    """
    _check(backbone, train, test, protocols, baselines)
    check_windows(windows)
    size, normalization = image_size_of(backbone, image_size), backbone.normalization
    images = Images(Uniform(train, normalization), Uniform(test, normalization), size, normalization, memory_bytes)
    bench = _Bench(images, protocols, windows)
    result = Evaluation(
        data={
            "name": train.name,
            "kind": type(train).__name__,
            "digest": train.digest(),
            "train_images": len(train),
            "test_images": len(test),
            "classes": list(train.class_names),
            **({"windows": windows} if train.image_of is not None else {}),
        },
        backbone=backbone.described(images.image_size),
        backbone_sha256=cache.checksum(backbone.variables),
    )
    kept = _Kept(backbone, images, result["backbone_sha256"], features_dir)

    test_windows = kept("test")
    result["metrics"] = {"pretrained": metrics.summary(test_windows.features)}
    if samples_dir is not None:
        samples.save_embeddings(samples_dir, images, test_windows.features, test_windows.labels)
        samples.forget_predictions(samples_dir)  # they are of an earlier evaluation, maybe on other data
        untrained_network = untrained_networks.untrained(backbone, image_size=images.image_size, seed=seed)
        samples.save_patches(samples_dir, images, backbone, untrained_network)
    if train.class_names or train.targets is not None:
        result["pretrained"] = bench.scores("pretrained", kept("train"), test_windows, backbone)
        if train.class_names:
            labels = labeled(over_windows(test, test_windows, windows)).labels
            largest = majority(labels, len(train.class_names))
            result["data"]["majority"] = {"class": train.class_names[largest.label], "percent": largest.percent}
            all_labels = result["pretrained"].get("linear/all/top1", {})
            if samples_dir is not None and "predictions" in all_labels:
                samples.save_predictions(samples_dir, train.class_names, labels, all_labels["predictions"])
        # The features of a baseline are computed while the one before is measured: neither uses all cores all the time.
        for name, found, network in one_ahead(bench.baselines(backbone, baselines, seed)):
            if network is None:
                result[name] = bench.scores(name, *found)
                continue
            result["metrics"][f"random, {name}"] = metrics.summary(found[1].features)
            # Training replaces the calibrated statistics, so calibrated variants are not trained as well.
            trained = not name.startswith("calibrated")
            scores = bench.scores(f"random, {name}", *found, network, trained=trained)
            result.setdefault("random_variants", {})[name] = scores
        if "random_variants" in result:
            result["random"] = best_of(result["random_variants"])
        for scores in (*(result.get(c, {}) for c in COLUMNS), *result.get("random_variants", {}).values()):
            for one in scores.values():
                one.pop("predictions", None)
    if cache.checksum(backbone.variables) != result["backbone_sha256"]:
        raise AssertionError(
            "the evaluation changed the backbone's weights, so its numbers describe no backbone; please report this"
        )
    return result


def image_size_of(backbone: Backbone, given: tuple[int, int] | None) -> tuple[int, int]:
    """(height, width) to read images at. Raises: ValueError if neither the caller nor the weights say it."""
    size = given or backbone.image_size
    if size is None:
        raise ValueError(
            "these weights do not say which size of images they were trained at; give image_size=(height, width) in "
            "pixels, such as (224, 224)"
        )
    return (size[0], size[1])


def _check(backbone: Backbone, train: Source, test: Source, names: Sequence[str], baselines: Sequence[str]) -> None:
    protocols.check(names)
    if unknown := sorted(set(baselines) - set(BASELINES)):
        raise ValueError(f"there is no baseline {', '.join(map(repr, unknown))}; choose from {', '.join(BASELINES)}")
    _ = backbone.normalization  # raises where it is unknown
    if train.class_names and not test.class_names:
        raise ValueError(f"{train.name} has labels and {test.name} has none; give test images with labels, too")
    if train.targets is not None and (test.targets is None or not train.targets.is_like(test.targets)):
        raise ValueError(
            f"{train.name} and {test.name} have different things to predict; both must have the same outputs: "
            f"{', '.join(train.targets.names)}"
        )
    if test.class_names != train.class_names[: len(test.class_names)]:
        raise ValueError(
            f"the classes of {test.name} are {', '.join(test.class_names)}, those of {train.name} "
            f"{', '.join(train.class_names) or 'none'}; both must have the same ones, in the same order"
        )


@dataclasses.dataclass(frozen=True)
class _Kept:
    """Features of a split by the backbone. If there is a directory, they are made once and kept there."""

    backbone: Backbone
    images: Images
    sha256: str
    directory: AnyPath | None

    def __call__(self, split: str) -> Extracted:
        def make() -> cache.Arrays:
            return extract(self.backbone.features, self.images.batches[split](), BATCH)._asdict()

        architecture = self.backbone.facts.get("model")
        if self.directory is None or architecture is None:
            found = make()
        else:
            found = cache.cached(self.directory, self._key(split, architecture), make)
        return Extracted(**found)

    def _key(self, split: str, architecture: Mapping[str, Any]) -> cache.Key:
        source = {"train": self.images.train, "test": self.images.test}[split]
        return cache.Key(
            backbone=self.sha256,
            architecture=architecture,
            data=f"{source.name} {source.digest()}",
            split=split,
            images=len(source),
            preprocessing={
                "image_size": self.images.image_size,
                **dataclasses.asdict(self.images.normalization),
            },
        )


@dataclasses.dataclass(frozen=True)
class _Bench:
    """Measures every subject in the same way."""

    images: Images
    names: Sequence[str]
    windows: str

    def features(self, features: Features) -> tuple[Extracted, Extracted]:
        """Of the training and the test images."""
        train, test = (extract(features, read(), BATCH) for read in self.images.batches.values())
        return train, test

    def baselines(
        self, backbone: Backbone, names: Sequence[str], seed: int
    ) -> Iterator[tuple[str, tuple[Extracted, Extracted], Backbone | None]]:
        """(name, features, network) of "pixels", whose network is None, and of each variant of "random"."""
        images = self.images
        if "pixels" in names:
            pixels = functools.partial(untrained_networks.pixels, images.normalization)
            yield "pixels", self.features(pixels), None
        if "random" in names:
            variants = untrained_networks.random_backbones(
                backbone, images.batches["train"], image_size=images.image_size, seed=seed
            )
            for name, network in variants.items():
                yield name, self.features(network.features), network

    def scores(
        self, name: str, train: Extracted, test: Extracted, backbone: Backbone | None = None, *, trained: bool = True
    ) -> Scores:
        """trained: whether protocols that train the backbone are included."""
        images, found = self.images, {}
        train, test = over_windows(images.train, train, self.windows), over_windows(images.test, test, self.windows)
        if images.train.class_names:
            names = [n for n in self.names if trained or protocols.PROTOCOLS[n].needs != "training"]
            subject = Subject(name, as_labeled(train, test, images.train), images, backbone)
            found = protocols.measure(subject, names)
        if images.train.targets is not None:
            found |= targets.measure(name, train, test, images.train, images.test)
        return found


def best_of(variants: Mapping[str, Scores]) -> Scores:
    """For each protocol the best variant's score, with its name."""
    best: Scores = {}
    for name, scores in variants.items():
        for protocol, score in scores.items():
            if protocol not in best or score["mean"] > best[protocol]["mean"]:
                best[protocol] = {**score, "variant": name}
    return best


def _table(result: Mapping[str, Any]) -> list[str]:
    """Lines of a table: accuracies, and in brackets the mean over classes if it differs (if class sizes differ)."""
    columns, largest = [column for column in COLUMNS if column in result], result["data"].get("majority")
    lines = [f"{'in percent':<32}" + "".join(f"{column:>12}{'':8}" for column in columns).rstrip()]
    for protocol in result["pretrained"]:
        cells = (_cell(result[column].get(protocol)) for column in columns)
        lines.append(f"{protocol:<32}{''.join(cells)}".rstrip())
    found = [result[column].get(protocol) for protocol in result["pretrained"] for column in columns]
    if largest is None:
        lines.append("means over what is predicted; each is in evaluation.json")
    elif any(score and _class_mean(score) for score in found):
        lines.append(f"in brackets: each class counts alike. Always {largest['class']!r}: {largest['percent']:.1f}")
    else:
        lines.append(f"the largest class has {largest['percent']:.1f} of the test images")
    if "random_variants" in result:
        lines.append("random: the best of " + ", ".join(result["random_variants"]))
    return lines


def _cell(score: Mapping[str, Any] | None) -> str:
    return f"{score['mean']:>12.1f}{_class_mean(score):>8}" if score else " " * 20


def _class_mean(score: Mapping[str, Any]) -> str:
    """ "(61.2)"; "" if it is the same as the accuracy, or the score has no class mean."""
    differs = abs(score["mean"] - score.get("class_mean", score["mean"])) >= 0.05
    return f"({score['class_mean']:.1f})" if differs else ""

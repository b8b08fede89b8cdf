"""ssl_jax finetune --workdir DIR --data LABELLED --out DIR [--head_only | --lora_rank N] [--per_class N] [--steps N]

Trains the backbone of a run, or of a file, and a linear layer on it, on labelled images: classes, several labels an
image, or measurements. ssl_jax predict uses the result. Writes backbone.safetensors, classifier.safetensors,
classifier.json, scores.json and report.html to --out. Scores are measured on the data's test split. A folder without
one gives a fifth of each class for the test, which is not trained on.
"""

import sys
from typing import Any

from ssl_jax import config as configs
from ssl_jax import report
from ssl_jax.cli import backbones
from ssl_jax.cli.flags import check_directory, path, read_flags, start_devices, user_errors
from ssl_jax.data import opening, pipeline
from ssl_jax.evaluation.classifier import Tuned, finetune
from ssl_jax.evaluation.evaluation import image_size_of
from ssl_jax.evaluation.finetuning_recipes import small_recipe
from ssl_jax.evaluation.tasks import CLASSES
from ssl_jax.keys import SEED
from ssl_jax.report.tuned import render
from ssl_jax.workdir import files


def main(argv: list[str] | None = None) -> None:
    with user_errors(pipeline.ImagesError):
        flags = read_flags(
            sys.argv[1:] if argv is None else argv,
            program="ssl_jax finetune: a backbone and a linear layer, trained on labelled images",
            switches={"head_only": "train the layer alone, on frozen features"},
            strings={
                **backbones.FLAGS,
                "data": f"{backbones.DATA}, with classes, labels or measurements (required)",
                "per_class": "number of labels of each class to train on, at least 2; default: all",
                "steps": "optimizer steps at each learning rate; default: 200",
                "batch_size": "images per step; default: 128",
                "learning_rates": (
                    "learning rates to try, separated by commas; the best one on held-out labels is used"
                ),
                "lora_rank": (
                    "rank of a low-rank adaptation: in place of the backbone's weights, products of two thin matrices "
                    "are trained, which are then added to the weights; default: 0, the weights"
                ),
                "lora_alpha": "the products are multiplied by this over lora_rank; default: 16",
                "ema_decay": "decay of the moving average of all weights, which is kept; default: 0, the last weights",
                "seed": "seed of the draw of labels, the first weights and the order of images; default: 0",
                "image_size": backbones.IMAGE_SIZE,
                "out": "directory for the classifier (required)",
            },
        )
        backbones.require(flags, "data", "out")
        check_directory("out", path("out", flags.out))
        numbers = {name: backbones.number(flags, name) for name in ("per_class", "seed")}
        if not SEED.allows(numbers["seed"]):
            raise configs.ConfigError(f"--seed must be {SEED}, got {numbers['seed']}")
        recipe = _recipe(flags)
        if flags.head_only and recipe:
            raise configs.ConfigError(f"--head_only trains no backbone; leave out --{next(iter(recipe))}")
        start_devices(flags.platform)
        backbone = backbones.load(flags)
        given = backbones.image_size(flags.image_size, backbone)
        size = configs.call(image_size_of, {}, "--image_size", backbone, given)
        pair = configs.call(opening.open_pair, backbones.how_to_read(backbone), "--data", flags.data)
        backbone = backbones.for_images(backbone, pair[0])
        options = {
            "recipe": None if flags.head_only else configs.call(small_recipe, recipe, "ssl_jax finetune", size),
            "head_only": flags.head_only,
            "per_class": numbers["per_class"],
            "seed": numbers["seed"] or 0,
            "image_size": size,
        }
        tuned = configs.call(finetune, options, "ssl_jax finetune", backbone, *pair)
        tuned.save(flags.out)
        classifier = tuned.classifier
        page = render(classifier.kind, classifier.names, tuned.scores, classifier.facts, tuned.tested)
        files.write(path("out", flags.out) / report.NAME, page)
        print(f"{flags.out}: {_summary(tuned)}")


def _recipe(flags: Any) -> dict[str, Any]:
    """Options of `small_recipe` that are given."""
    whole = {name: backbones.number(flags, name) for name in ("steps", "batch_size", "lora_rank")}
    found: dict[str, Any] = {name: number for name, number in whole.items() if number is not None}
    for name in ("lora_alpha", "ema_decay"):
        if getattr(flags, name):
            (found[name],) = backbones.floats(flags, name)
    if flags.learning_rates:
        found["learning_rates"] = backbones.floats(flags, "learning_rates")
    return found


def _summary(tuned: Tuned) -> str:
    """What is printed of the scores."""
    scores, kind = tuned.scores, tuned.classifier.kind
    trained = f"trained on {scores['labels']:,} labelled images"
    if "learning_rate" in scores:
        trained += f" at learning rate {scores['learning_rate']:g}"
    if "test_images" not in scores:
        return trained
    tested = f"{scores['test_images']:,} test images"
    if kind == CLASSES:
        return (
            f"{scores['top1']:.1f} % of {tested} are classified correctly (mean over classes: "
            f"{scores['class_mean']:.1f} %; the largest class has {scores['majority']:.1f} %); {trained}"
        )
    measures = {"map": "mean average precision", "auroc": "area under the ROC curve", "r2": "explained variance"}
    found = ", ".join(f"{called} {scores[name]:.1f} %" for name, called in measures.items() if name in scores)
    return f"{found or 'nothing to measure'} on {tested}; {trained}"

"""ssl_jax finetune --workdir DIR --data LABELLED --out DIR [--per_class N] [--steps N]

Trains the backbone of a run, or of a file, and a classifier on it, on labelled images. ssl_jax predict uses the result.
Writes backbone.safetensors, classifier.safetensors, classifier.json and scores.json to --out. Scores are measured on
the data's test split. A folder without one gives a fifth of each class for the test, which is not trained on.
"""

import sys
from pathlib import Path
from typing import Any

from ssl_jax import config as configs
from ssl_jax.cli import backbones
from ssl_jax.cli.flags import check_directory, read_flags, user_errors
from ssl_jax.data import opening, pipeline
from ssl_jax.evaluation.classifier import finetune
from ssl_jax.evaluation.evaluation import image_size_of
from ssl_jax.evaluation.finetuning_recipes import small_recipe
from ssl_jax.keys import SEED


def main(argv: list[str] | None = None) -> None:
    with user_errors(pipeline.ImagesError):
        flags = read_flags(
            sys.argv[1:] if argv is None else argv,
            program="ssl_jax finetune: a backbone and a classifier, trained on labelled images",
            strings={
                **backbones.FLAGS,
                "data": f"{backbones.DATA}, with labels (required)",
                "per_class": "number of labels of each class to train on, at least 2; default: all",
                "steps": "optimizer steps at each learning rate; default: 200",
                "batch_size": "images per step; default: 128",
                "learning_rates": (
                    "learning rates to try, separated by commas; the best one on held-out labels is used"
                ),
                "seed": "seed of the draw of labels, the first weights and the order of images; default: 0",
                "image_size": backbones.IMAGE_SIZE,
                "out": "directory for the classifier (required)",
            },
        )
        backbones.require(flags, "data", "out")
        check_directory("out", Path(flags.out))
        numbers = {name: backbones.number(flags, name) for name in ("steps", "batch_size", "per_class", "seed")}
        if not SEED.allows(numbers["seed"]):
            raise configs.ConfigError(f"--seed must be {SEED}, got {numbers['seed']}")
        recipe: dict[str, Any] = {name: numbers[name] for name in ("steps", "batch_size") if numbers[name] is not None}
        if flags.learning_rates:
            recipe["learning_rates"] = backbones.floats(flags, "learning_rates")
        backbone = backbones.load(flags)
        given = backbones.image_size(flags.image_size, backbone)
        size = configs.call(image_size_of, {}, "--image_size", backbone, given)
        pair = configs.call(opening.open_pair, backbones.how_to_read(backbone), "--data", flags.data)
        backbone = backbones.for_images(backbone, pair[0])
        options = {
            "recipe": configs.call(small_recipe, recipe, "ssl_jax finetune", size),
            "per_class": numbers["per_class"],
            "seed": numbers["seed"] or 0,
            "image_size": size,
        }
        tuned = configs.call(finetune, options, "ssl_jax finetune", backbone, *pair)
        tuned.save(flags.out)
        scores = tuned.scores
        print(
            f"{flags.out}: {scores['top1']:.1f} % of {scores['test_images']:,} test images are "
            f"classified correctly (mean over classes: {scores['class_mean']:.1f} %); trained on "
            f"{scores['labels']:,} labels at learning rate {scores['learning_rate']:g}"
        )

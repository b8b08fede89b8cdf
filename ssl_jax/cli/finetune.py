"""ssl_jax finetune --workdir DIR --data LABELLED --out DIR [--per_class N] [--steps N]

Trains the backbone of a run, or of a file, and a classifier on it, on labelled images. ssl_jax predict uses the result.
Writes backbone.safetensors, classifier.safetensors, classifier.json and scores.json to --out. Scores are measured on
the data's test split. A folder without one gives a fifth of each class for the test, which is not trained on.
"""

import sys
from typing import Any

from ssl_jax import config as configs
from ssl_jax.cli import backbones
from ssl_jax.cli.flags import read_flags, user_errors
from ssl_jax.data import pipeline, sources
from ssl_jax.evaluation.classifier import finetune
from ssl_jax.evaluation.evaluation import image_size_of
from ssl_jax.evaluation.finetuning_recipes import small_recipe


def main(argv: list[str] | None = None) -> None:
    with user_errors(pipeline.ImagesError):
        flags = read_flags(
            sys.argv[1:] if argv is None else argv,
            program="ssl_jax finetune: a backbone and a classifier, trained on labelled images",
            strings={
                **backbones.FLAGS,
                "data": f"{backbones.DATA}, with labels (required)",
                "per_class": "labels of each class that are used, at least 2; all if not given",
                "steps": "of the optimizer, at each learning rate; 200 if not given",
                "batch_size": "images a step; 128 if not given",
                "learning_rates": "with commas; the one is taken that suits held-out labels best",
                "seed": "of the draw of labels, the first weights and the order; 0 if not given",
                "image_size": backbones.IMAGE_SIZE,
                "out": "a directory for the classifier (required)",
            },
        )
        backbones.require(flags, "data", "out")
        numbers = {name: backbones.number(flags, name) for name in ("steps", "batch_size", "per_class", "seed")}
        recipe: dict[str, Any] = {name: numbers[name] for name in ("steps", "batch_size") if numbers[name] is not None}
        if flags.learning_rates:
            recipe["learning_rates"] = backbones.floats(flags, "learning_rates")
        backbone = backbones.load(flags)
        given = backbones.image_size(flags.image_size, backbone)
        size = configs.call(image_size_of, {}, "--image_size", backbone, given)
        pair = configs.call(sources.open_pair, {"channels": len(backbone.mean) or 3}, "--data", flags.data)
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
            f"{flags.out}: {scores['top1']:.1f} % of {scores['test_images']:,} test images are right (each class "
            f"counting alike: {scores['class_mean']:.1f} %); {scores['labels']:,} labels, learning rate "
            f"{scores['learning_rate']:g}"
        )

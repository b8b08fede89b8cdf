"""ssl_jax predict --workdir DIR --data NEW --out FILE.csv: predicts classes with what ssl_jax finetune wrote.

Writes a line for each image that can be decoded: name, class, its probability, and the probability of each class.
"""

import sys
from pathlib import Path

from ssl_jax import config as configs
from ssl_jax.cli import backbones
from ssl_jax.cli.flags import check_file, read_flags, user_errors
from ssl_jax.data import opening, pipeline
from ssl_jax.evaluation import classifier as classifiers


def main(argv: list[str] | None = None) -> None:
    with user_errors(pipeline.ImagesError):
        flags = read_flags(
            sys.argv[1:] if argv is None else argv,
            program="ssl_jax predict: the classes of images",
            strings={
                "workdir": "directory that ssl_jax finetune wrote (required)",
                "data": f"{backbones.DATA} (required)",
                "split": "split of the data; default: train",
                "windows": backbones.WINDOWS,
                "out": "file to write, .csv (required)",
            },
        )
        backbones.require(flags, "workdir", "data", "out")
        check_file("out", Path(flags.out))
        classifier = configs.call(classifiers.load_classifier, {}, "--workdir", flags.workdir)
        options = {"split": flags.split or "train", **backbones.how_to_read(classifier.backbone)}
        source = configs.call(opening.open_data, options, "--data", flags.data)
        found = configs.call(
            classifiers.predict, {"windows": flags.windows or "mean"}, "ssl_jax predict", classifier, source
        )
        classifiers.save_predictions(Path(flags.out), found, classifier.class_names)
        print(f"{flags.out}: {len(found.names):,} images")
        backbones.print_left_out(source, found.names, flags.windows)

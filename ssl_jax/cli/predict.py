"""ssl_jax predict --workdir DIR --data NEW --out FILE: predicts with what ssl_jax finetune wrote.
ssl_jax predict --workdir DIR --data NEW --out DIRECTORY: predicts masks with what ssl_jax segment wrote.

Writes a row for each image that can be decoded: name, class, its probability, and the probability of each class. Of
several labels: the labels that it has, and the probability of each. Of measurements: their values.
"""

import sys

from ssl_jax import config as configs
from ssl_jax.cli import backbones
from ssl_jax.cli.flags import PLATFORM, check_file, path, read_flags, start_devices, user_errors
from ssl_jax.cli.predict_masks import predict_masks
from ssl_jax.data import opening, pipeline
from ssl_jax.evaluation import classifier as classifiers
from ssl_jax.evaluation import predictions_file
from ssl_jax.evaluation.embedding import check_format
from ssl_jax.evaluation.segmenter import has_segmenter


def main(argv: list[str] | None = None) -> None:
    with user_errors(pipeline.ImagesError):
        flags = read_flags(
            sys.argv[1:] if argv is None else argv,
            program="ssl_jax predict: the classes of images, their labels, measurements, or masks",
            strings={
                "workdir": "directory that ssl_jax finetune or ssl_jax segment wrote (required)",
                "data": f"{backbones.DATA} (required)",
                "split": "split of the data; default: train",
                "windows": backbones.WINDOWS,
                **PLATFORM,
                "out": f"file to write, {' or '.join(predictions_file.FORMATS)}; with a segmenter, a directory for a "
                "mask of each image (required)",
            },
        )
        backbones.require(flags, "workdir", "data", "out")
        start_devices(flags.platform)
        if has_segmenter(flags.workdir):
            predict_masks(flags)
            return
        out = path("out", flags.out)
        check_file("out", out)
        configs.call(check_format, {}, "--out", out, predictions_file.FORMATS)
        classifier = configs.call(classifiers.load_classifier, {}, "--workdir", flags.workdir)
        options = {"split": flags.split or "train", **backbones.how_to_read(classifier.backbone)}
        source = configs.call(opening.open_data, options, "--data", flags.data)
        found = configs.call(
            classifiers.predict, {"windows": flags.windows or "mean"}, "ssl_jax predict", classifier, source
        )
        predictions_file.save(out, found, classifier)
        print(f"{flags.out}: {len(found.names):,} images")
        backbones.print_left_out(source, found.names, flags.windows)

"""ssl_jax segment --workdir RUN --data IMAGES --masks MASKS --out DIR [--head conv] [--mask_values 0,255]

Trains a head on the frozen backbone of a run, or of a file, that names the class of each pixel, from images with masks.
ssl_jax predict uses the result. Writes backbone.safetensors, segmenter.safetensors, segmenter.json, scores.json and
report.html to --out. Scores are measured on the data's test split. A folder without one gives a fifth of its images
for the test, which are not trained on.
"""

import sys
from pathlib import Path
from typing import Any

from ssl_jax import config as configs
from ssl_jax import data, report
from ssl_jax.cli import backbones
from ssl_jax.cli.flags import check_directory, on_disk, read_flags, start_devices, user_errors
from ssl_jax.data import opening, pipeline
from ssl_jax.evaluation.evaluation import image_size_of
from ssl_jax.evaluation.segmentation import HEADS, LEARNING_RATES, STEPS, check_head
from ssl_jax.evaluation.segmenting import segment
from ssl_jax.keys import SEED
from ssl_jax.report.segmentation import Segmented


def main(argv: list[str] | None = None) -> None:
    with user_errors(pipeline.ImagesError):
        flags = read_flags(
            sys.argv[1:] if argv is None else argv,
            program="ssl_jax segment: a head on a frozen backbone that names the class of each pixel",
            strings={
                **backbones.FLAGS,
                "data": f"{backbones.DATA} (required)",
                "masks": "folder of masks; each has the path of its image in --data, with the ending .png, .tif or "
                "another lossless one (required)",
                "head": f"{' or '.join(HEADS)}; default: linear",
                "mask_values": "values of the pixels of class 0, 1, ... in masks, separated by commas, such as 0,255; "
                "default: values are classes, and 255 is for pixels that do not count",
                "classes": "names of classes 0, 1, ..., separated by commas, such as background,lesion",
                "image_size": backbones.IMAGE_SIZE,
                "steps": f"optimizer steps; default: {STEPS}",
                "learning_rates": "learning rates to try, separated by commas; the best one on held-out images is "
                f"used; default: {','.join(f'{rate:g}' for rate in LEARNING_RATES)}",
                "seed": "seed of the held-out images, the first weights and the order of images; default: 0",
                "out": "directory for the segmenter and its page (required)",
            },
        )
        backbones.require(flags, "data", "masks", "out")
        out = on_disk("out", flags.out)
        check_directory("out", out)
        if flags.workdir and out.resolve() == Path(flags.workdir).resolve():
            raise configs.ConfigError(f"--out={out}: that is --workdir, whose files would be replaced; name another")
        options = _options(flags)
        start_devices(flags.platform)
        backbone = backbones.load(flags)
        window = backbone.facts.get("window", 0)
        if window and not flags.image_size:
            raise configs.ConfigError(
                f"the backbone was trained on windows of {window} pixels, and segment reads whole images; cut images "
                f"and masks into files of that size and give --image_size={window}, or another size to read them at"
            )
        given = backbones.image_size(flags.image_size, backbone)
        options["image_size"] = configs.call(image_size_of, {}, "--image_size", backbone, given)
        how = {**backbones.how_to_read(backbone), "window": 0}
        sources = configs.call(opening.open_pair, how, "--data", flags.data)
        pairs = [configs.call(data.masked, {}, "--masks", source, flags.masks) for source in sources]
        backbone = backbones.for_images(backbone, pairs[0].images)
        found = configs.call(segment, options, "ssl_jax segment", backbone, *pairs)
        found.save(out)
        names = found.segmenter.class_names
        page = Segmented(sources[0].name, names, found.scores, dict(backbone.facts), *found.samples)
        report.write_segmentation(page, out / report.NAME)
        scores, largest = found.scores, found.scores["majority"]
        if count := scores["images_without_mask"]:
            print(f"left out {count:,} of {sum(map(len, sources)):,} images: they have no mask in {flags.masks}")
        if count := sum(len(one.images) for one in pairs) - scores["train_images"] - scores["test_images"]:
            print(f"left out {count:,} images: they or their masks cannot be decoded; each is named above")
        print(
            f"{out}: mean IoU {scores['mean_iou']:.1f} % on {scores['test_images']:,} test images (calling every pixel "
            f"{largest['class']}: {largest['mean_iou']:.1f} %); {scores['pixel_accuracy']:.1f} % of the pixels are "
            f"right ({largest['percent']:.1f} %); trained on {scores['train_images']:,} images at learning rate "
            f"{scores['learning_rate']:g}"
        )


def _options(flags: Any) -> dict[str, Any]:
    """Options of `segment`, as far as the flags alone say them. Raises: ConfigError."""
    numbers = {name: backbones.number(flags, name) for name in ("steps", "seed")}
    if not SEED.allows(numbers["seed"]):
        raise configs.ConfigError(f"--seed must be {SEED}, got {numbers['seed']}")
    options: dict[str, Any] = {name: value for name, value in numbers.items() if value is not None}
    options["head"] = flags.head or "linear"
    configs.call(check_head, {}, "--head", options["head"])
    if flags.learning_rates:
        options["learning_rates"] = backbones.floats(flags, "learning_rates")
    if flags.mask_values:
        options["mask_values"] = _values(flags.mask_values)
    if flags.classes:
        options["class_names"] = tuple(name.strip() for name in flags.classes.split(","))
    return options


def _values(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise configs.ConfigError(
            f"--mask_values must be integers separated by commas, such as 0,255, got {text!r}"
        ) from error

"""ssl_jax evaluate --workdir DIR [--data DATA] [--protocols knn,linear,finetune] [--baselines random,pixels]
ssl_jax evaluate --backbone FILE [--model NAME] --data DATA [--out scores.json,scores.html]

Evaluates the backbone, random initialization and the raw pixels, all under the same protocols. For a run, writes
DIR/evaluation.json and, for the report, embeddings, predictions and pictures of patches to DIR/samples. Features are
kept in DIR/features for the next evaluation.
"""

import json
import sys
import tempfile
from typing import Any

from ssl_jax import config as configs
from ssl_jax import report
from ssl_jax.cli import backbones, showing
from ssl_jax.cli.flags import path, read_flags, start_devices, user_errors, written_files
from ssl_jax.data import opening, pipeline
from ssl_jax.evaluation import protocols
from ssl_jax.evaluation.evaluate import evaluate
from ssl_jax.evaluation.evaluation import BASELINES, Evaluation
from ssl_jax.paths import AnyPath
from ssl_jax.workdir import files
from ssl_jax.workdir.samples import FOLDER as SAMPLES


def main(argv: list[str] | None = None) -> None:
    with user_errors(pipeline.ImagesError):
        flags = read_flags(
            sys.argv[1:] if argv is None else argv,
            program="ssl_jax evaluate: what the features of a backbone are worth",
            strings={
                **backbones.FLAGS,
                "data": f"{backbones.DATA}; default for --workdir: the data of the run",
                "protocols": (
                    f"some of {', '.join(protocols.PROTOCOLS)}, separated by commas; default: "
                    f"{','.join(protocols.BY_DEFAULT)}"
                ),
                "baselines": f"some of {', '.join(BASELINES)}, separated by commas, or none; default: both",
                "image_size": f"only with --backbone: {backbones.IMAGE_SIZE}",
                "windows": backbones.WINDOWS,
                **showing.FLAGS,
                "out": (
                    "files to write, separated by commas: .json the scores, .html a page of them; with --workdir, the "
                    "scores are written to its evaluation.json as well"
                ),
            },
        )
        options: dict[str, Any] = {
            "protocols": tuple(flags.protocols.split(",")) if flags.protocols else protocols.BY_DEFAULT,
            "baselines": _baselines(flags.baselines),
            "windows": flags.windows or "mean",
        }
        configs.call(protocols.check, {}, "--protocols", options["protocols"])
        backbones.check(flags)
        written = written_files("out", flags.out, (".json", ".html")) if flags.out else []
        start_devices(flags.platform)
        with tempfile.TemporaryDirectory() as folder:
            page = any(file.suffix == ".html" for file in written)
            workdir = path("workdir", flags.workdir or folder)
            found, shown = _of_run(flags, options) if flags.workdir else _of_file(flags, options, page and workdir)
            print(f"\n{found}")
            for file in written:
                if file.suffix == ".html":
                    configs.call(report.write_scores, shown, "--bands, --stretch", found, workdir, file)
                else:
                    files.write(file, json.dumps(found, indent=2))
                print(file)


def _of_run(flags: Any, options: dict[str, Any]) -> tuple[Evaluation, dict[str, Any]]:
    """(scores, options of `report.write_scores`)."""
    if flags.image_size:
        raise configs.ConfigError(
            "--image_size goes with --backbone only; leave it out: a run is evaluated at its own image size"
        )
    shown = showing.options(flags)
    found = configs.call(evaluate, {**options, "data": flags.data}, "ssl_jax evaluate", flags.workdir)
    found["backbone"]["file"] = flags.workdir
    return found, shown


def _of_file(flags: Any, options: dict[str, Any], folder: AnyPath | bool) -> tuple[Evaluation, dict[str, Any]]:
    """As `_of_run`. folder: where pictures for a page go; False for no page."""
    backbones.require(flags, "data")
    backbone = backbones.load(flags)
    shown = showing.options(flags, backbone.facts["channels"])
    pair = configs.call(opening.open_pair, backbones.how_to_read(backbone), "--data", flags.data)
    backbone = backbones.for_images(backbone, pair[0])
    options["image_size"] = backbones.image_size(flags.image_size, backbone)
    if options["image_size"] is None:
        raise configs.ConfigError(
            f"{flags.backbone} does not say at which image size it was trained; give one, such as --image_size=224"
        )
    options["samples_dir"] = None if isinstance(folder, bool) else folder / SAMPLES
    found = configs.call(evaluate, options, "ssl_jax evaluate", backbone, *pair)
    found["backbone"]["file"] = flags.backbone
    return found, shown


def _baselines(text: str) -> tuple[str, ...]:
    names = BASELINES if not text else () if text == "none" else tuple(text.split(","))
    if unknown := sorted(set(names) - set(BASELINES)):
        raise configs.ConfigError(
            f"--baselines={text}: there is no baseline {', '.join(unknown)}; choose from "
            f"{', '.join(BASELINES)}, or give none"
        )
    return names

"""ssl_jax evaluate --workdir DIR [--data DATA] [--protocols knn,linear,finetune] [--baselines random,pixels]
ssl_jax evaluate --backbone FILE [--model NAME] --data DATA [--out FILE]

Evaluates the backbone, random initialization and the raw pixels, all under the same protocols. For a run, writes
DIR/evaluation.json and, for the report, embeddings, predictions and pictures of patches to DIR/samples. Features are
kept in DIR/features for the next evaluation.
"""

import json
import sys
from pathlib import Path
from typing import Any

from ssl_jax import config as configs
from ssl_jax.cli import backbones
from ssl_jax.cli.flags import check_file, read_flags, user_errors
from ssl_jax.data import opening, pipeline
from ssl_jax.evaluation import protocols
from ssl_jax.evaluation.evaluate import evaluate
from ssl_jax.evaluation.evaluation import BASELINES
from ssl_jax.workdir import files


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
                "out": "JSON file for the numbers; with --workdir, they are written to its evaluation.json as well",
            },
        )
        options: dict[str, Any] = {
            "protocols": tuple(flags.protocols.split(",")) if flags.protocols else protocols.BY_DEFAULT,
            "baselines": _baselines(flags.baselines),
            "windows": flags.windows or "mean",
        }
        configs.call(protocols.check, {}, "--protocols", options["protocols"])
        backbones.check(flags)
        if flags.out:
            check_file("out", Path(flags.out))
        if flags.workdir:
            if flags.image_size:
                raise configs.ConfigError(
                    "--image_size goes with --backbone only; leave it out: a run is evaluated at its own image size"
                )
            options["data"] = flags.data
            found = configs.call(evaluate, options, "ssl_jax evaluate", flags.workdir)
        else:
            backbones.require(flags, "data")
            backbone = backbones.load(flags)
            pair = configs.call(opening.open_pair, backbones.how_to_read(backbone), "--data", flags.data)
            backbone = backbones.for_images(backbone, pair[0])
            options["image_size"] = backbones.image_size(flags.image_size, backbone)
            if options["image_size"] is None:
                raise configs.ConfigError(
                    f"{flags.backbone} does not say at which image size it was trained; give one, "
                    "such as --image_size=224"
                )
            found = configs.call(evaluate, options, "ssl_jax evaluate", backbone, *pair)
        print(f"\n{found}")
        if flags.out:
            files.write(Path(flags.out), json.dumps(found, indent=2))


def _baselines(text: str) -> tuple[str, ...]:
    names = BASELINES if not text else () if text == "none" else tuple(text.split(","))
    if unknown := sorted(set(names) - set(BASELINES)):
        raise configs.ConfigError(
            f"--baselines={text}: there is no baseline {', '.join(unknown)}; choose from "
            f"{', '.join(BASELINES)}, or give none"
        )
    return names

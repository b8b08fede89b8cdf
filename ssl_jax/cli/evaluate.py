"""ssl_jax evaluate --workdir DIR [--data DATA] [--protocols knn,linear,finetune] [--baselines random,pixels]
ssl_jax evaluate --backbone FILE [--model NAME] --data DATA [--out FILE]

Evaluates the backbone, random initialization and the raw pixels, all under the same protocols. For a run, writes
DIR/evaluation.json and, for the report, embeddings, predictions and pictures of patches to DIR/samples. Features are
kept in DIR/features for the next evaluation.
"""

import json
import sys
from pathlib import Path

from ssl_jax import config as configs
from ssl_jax.cli import backbones
from ssl_jax.cli.flags import read_flags, user_errors
from ssl_jax.data import pipeline, sources
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
                "data": f"{backbones.DATA}; of a run its own data if not given",
                "protocols": f"of {', '.join(protocols.PROTOCOLS)}, with commas; by default "
                f"{','.join(protocols.BY_DEFAULT)}",
                "baselines": f"of {', '.join(BASELINES)}, with commas, or none; both if not given",
                "image_size": f"with --backbone: {backbones.IMAGE_SIZE}",
                "out": "a file to write the numbers to as JSON; those of a run are in its evaluation.json anyway",
            },
        )
        options = {
            "protocols": tuple(flags.protocols.split(",")) if flags.protocols else protocols.BY_DEFAULT,
            "baselines": _baselines(flags.baselines),
        }
        configs.call(protocols.check, {}, "--protocols", options["protocols"])
        backbones.check(flags)
        if flags.workdir:
            if flags.image_size:
                raise configs.ConfigError("--image_size is for --backbone; a run is measured at its own size")
            found = evaluate(flags.workdir, data=flags.data, **options)
        else:
            backbones.require(flags, "data")
            backbone = backbones.load(flags)
            pair = configs.call(sources.open_pair, {"channels": len(backbone.mean) or 3}, "--data", flags.data)
            options["image_size"] = backbones.image_size(flags.image_size, backbone)
            if options["image_size"] is None:
                raise configs.ConfigError(f"{flags.backbone} does not say its size of images; give --image_size=224")
            found = configs.call(evaluate, options, "ssl_jax evaluate", backbone, *pair)
        print(f"\n{found}")
        if flags.out:
            files.write(Path(flags.out), json.dumps(found, indent=2))


def _baselines(text: str) -> tuple[str, ...]:
    names = BASELINES if not text else () if text == "none" else tuple(text.split(","))
    if unknown := sorted(set(names) - set(BASELINES)):
        raise configs.ConfigError(
            f"--baselines={text}: no baseline {', '.join(unknown)}; there are {', '.join(BASELINES)}, or none"
        )
    return names

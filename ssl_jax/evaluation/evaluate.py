"""Measures the features of a backbone or of a run.

print(evaluate(backbone, train, test, protocols=("knn", "linear")))
print(evaluate("runs/a"))    # on the data that it was trained on
"""

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from ssl_jax import config as configs
from ssl_jax import paths
from ssl_jax.config import Config
from ssl_jax.data import Items, as_source, opening
from ssl_jax.data.sources import Source
from ssl_jax.evaluation import protocols as known
from ssl_jax.evaluation.evaluation import BASELINES, Evaluation, evaluate_backbone
from ssl_jax.paths import AnyPath
from ssl_jax.training import reading
from ssl_jax.weights import Backbone, load_backbone
from ssl_jax.workdir import config_file, facts, files


def evaluate(
    what: Backbone | str | os.PathLike[str],
    train: Source | Items | None = None,
    test: Source | Items | None = None,
    **options: Any,
) -> Evaluation:
    """Evaluates a backbone on given images, or a run of `ssl_jax train`. A run has images of its own if none are given.

    Args:
      what: a backbone, or the workdir of a run.
      train, test: labelled images to measure on: sources of `ssl_jax.data`, or objects whose items are (image, label).
      options: those of `evaluate_backbone`, or for a workdir those of `evaluate_run`.
    Raises: ValueError, or its subclass ConfigError; the message says what to give.
    """
    if (train is None) != (test is None) or (isinstance(what, Backbone) and train is None):
        raise ValueError(
            "give the images to measure on, evaluate(backbone, train, test); only a run of ssl_jax "
            "train, named by its workdir, has images of its own"
        )
    pair = None if train is None or test is None else (as_source(train), as_source(test))
    if not isinstance(what, Backbone):
        return evaluate_run(paths.path(what), pair=pair, **options)
    assert pair is not None
    return evaluate_backbone(what, *pair, **options)


def evaluate_run(
    workdir: AnyPath,
    *,
    data: str = "",
    pair: tuple[Source, Source] | None = None,
    other_data: bool = False,
    protocols: Sequence[str] = known.BY_DEFAULT,
    baselines: Sequence[str] = BASELINES,
    windows: str = "mean",
) -> Evaluation:
    """Evaluates the backbone of a run. Writes evaluation.json, samples/ (for the report) and features/ (a cache).

    Args:
      workdir: of a finished run.
      data: what to measure on, as `opening.open_pair` takes it; "" for the data of the run.
      pair: (training, test) images, in place of `data`. Their features are not kept, as a digest of arrays does not
        tell them apart.
      other_data: whether the given pair may be other images than those that the run was trained on.
      protocols, baselines, windows: those of `evaluate_backbone`, which checks them.
    Raises: ConfigError if neither `data` nor `pair` is given and the config does not name the images that the run was
      trained on; also for a pair of other images without `other_data`.
    """
    config = configs.parse(config_file.read_config(workdir))
    backbone = configs.call(load_backbone, {}, "--workdir", workdir)
    if pair is not None:
        if not other_data:
            check_same_images(workdir, pair[0])
        train, test = pair
    elif data:
        splits = {"train_split": config.data.split, "test_split": config.data.test_split}
        options = splits | reading.how_to_read(config)
        train, test = configs.call(opening.open_pair, options, "--data", data)
    else:
        train, test = own_pair(workdir, config)
    result = evaluate_backbone(
        backbone,
        train,
        test,
        protocols=protocols,
        baselines=baselines,
        image_size=config.data.image_size,
        memory_bytes=config.data.memory_bytes,
        seed=config.seed,
        windows=windows,
        features_dir=None if pair else workdir / "features",
        samples_dir=workdir / "samples",
    )
    files.write(workdir / "evaluation.json", json.dumps(result, indent=2))
    return result


def own_pair(workdir: AnyPath, config: Config) -> tuple[Source, Source]:
    """(training, test) images of the run itself. Raises: ConfigError if its config does not name them."""
    data = config.data.path or config.data.name
    try:
        train, test = reading.source_pair(config)
    except configs.ConfigError:
        if facts.trained_on(workdir).get("given"):
            facts.check_measured(workdir, [], data)
        raise

    def found() -> Iterator[Source]:
        yield train
        yield reading.whole_source(config)  # opened only where the run was not trained on the training part

    facts.check_measured(workdir, found(), data)
    return train, test


def check_same_images(workdir: AnyPath, train: Source) -> None:
    """Raises: ConfigError if `train` is not what the run was trained on. Passes if the run does not say what it was."""
    trained = facts.trained_on(workdir)
    if trained and trained["digest"] != train.digest():
        raise configs.ConfigError(
            f"the run in {workdir} was trained on {trained['kind']} {trained['name']!r} (digest "
            f"{trained['digest']}), but the training images given now are {type(train).__name__} "
            f"{train.name!r} (digest {train.digest()}); give the same images, or pass other_data=True "
            "to measure on other images"
        )

"""Reads what a run's workdir holds. Any file may be missing, or cut short while a run goes on."""

import dataclasses
import json
import textwrap
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from ssl_jax import paths
from ssl_jax.paths import AnyPath
from ssl_jax.workdir.metrics import read_metrics

MAX_BYTES = 2**30  # of the arrays in a file; ssl_jax writes about 50 million


@dataclasses.dataclass(frozen=True)
class Record:
    """A workdir's files.

    config, facts, evaluation: config.json, run.json, evaluation.json; {} where there is none.
    metrics: metrics.jsonl, one dict a logged step.
    views: samples/views.npz: "original" uint8 [n, height, width, channels], "views" uint8 [n, views, height, width,
      channels]; {} where there is none.
    pictures: samples/pictures.npz: title -> uint8 [n, height, width, channels], the same n for all; {} where there is
      none, for example for a method that draws nothing.
    embeddings: samples/embeddings.npz: "images" uint8 [n, height, width, channels], "features" float32 [n, dim],
      "labels" int32 [n] (-1 is unlabeled), "class_names"; {} where there is none.
    patches: samples/patches.npz: "images", and under "features/NAME" and "attention/NAME" what networks make of their
      patches: uint8 [n, height, width, channels], the same n for all; {} where there is none, for example for a network
      that has neither.
    predictions: samples/predictions.npz: "labels" and "predictions" int32 [n] of test images, both >= 0, "class_names";
      {} where there is none.
    unreadable: file name -> reason, of the files that are there but damaged.
    """

    workdir: AnyPath
    config: Mapping[str, Any]
    facts: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    metrics: list[dict[str, Any]]
    views: Mapping[str, np.ndarray]
    pictures: Mapping[str, np.ndarray]
    embeddings: Mapping[str, np.ndarray]
    patches: Mapping[str, np.ndarray]
    predictions: Mapping[str, np.ndarray]
    unreadable: Mapping[str, str]

    @property
    def steps(self) -> int | None:
        """Steps of the whole run; None if its config or data are not known."""
        if self.config.get("steps"):
            return self.config["steps"]
        if "num_images" in self.facts and self.config.get("epochs") and self.config.get("batch_size"):
            return self.config["epochs"] * (self.facts["num_images"] // self.config["batch_size"])
        return None

    @property
    def last_step(self) -> int:
        return self.metrics[-1]["step"] if self.metrics else 0

    @property
    def seconds(self) -> float:
        """Time in steps, from the logged speeds, without compilation, evaluations and pauses between two starts."""
        total, previous = 0.0, 0
        for line in self.metrics:
            if line.get("images_per_second"):
                total += (line["step"] - previous) * self.config.get("batch_size", 0) / line["images_per_second"]
            previous = line["step"]
        return total

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, values) of the lines of metrics.jsonl that have `name`; NaN where the value was not finite."""
        pairs = [(line["step"], line[name]) for line in self.metrics if name in line]
        steps, values = zip(*pairs, strict=True) if pairs else ((), ())
        return np.array(steps, np.int64), np.array([np.nan if v is None else v for v in values], np.float64)


def read(workdir: AnyPath) -> Record:
    """Raises: FileNotFoundError if there is no such directory."""
    if not workdir.is_dir():
        raise FileNotFoundError(f"no directory {workdir}; give the --workdir of a run of ssl_jax train")
    unreadable: dict[str, str] = {}

    def attempt(name: str, reader: Any, otherwise: Any) -> Any:
        path = workdir / name
        try:
            return reader(path) if path.exists() else otherwise
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            EOFError,
            MemoryError,
            RecursionError,
            zipfile.BadZipFile,
        ) as error:
            unreadable[name] = textwrap.shorten(f"{type(error).__name__}: {error}", 300)
            return otherwise

    return Record(
        workdir=workdir,
        config=attempt("config.json", _read_object, {}),
        facts=attempt("run.json", _read_object, {}),
        evaluation=attempt("evaluation.json", _read_object, {}),
        metrics=attempt("metrics.jsonl", read_metrics, []),
        views=attempt("samples/views.npz", _read_views, {}),
        pictures=attempt("samples/pictures.npz", _read_pictures, {}),
        embeddings=attempt("samples/embeddings.npz", _read_embeddings, {}),
        patches=attempt("samples/patches.npz", _read_patches, {}),
        predictions=attempt("samples/predictions.npz", _read_predictions, {}),
        unreadable=unreadable,
    )


def _read_object(path: AnyPath) -> dict[str, Any]:
    value = json.loads(paths.read_bytes(path))
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object is expected, not {type(value).__name__}")
    return value


def _read_views(path: AnyPath) -> dict[str, np.ndarray]:
    arrays = _read_arrays(path, {"original": 4, "views": 5})
    if len(arrays["original"]) != len(arrays["views"]):
        raise ValueError(f"{len(arrays['original'])} originals, but views of {len(arrays['views'])} images")
    return arrays


def _read_pictures(path: AnyPath) -> dict[str, np.ndarray]:
    with paths.opened(path) as opened, np.load(opened, allow_pickle=False) as file:
        titles = list(file)
    pictures = _read_arrays(path, dict.fromkeys(titles, 4))
    if len({len(made) for made in pictures.values()}) > 1:
        raise ValueError(f"the rows differ in length: { {title: len(made) for title, made in pictures.items()} }")
    return pictures


def _read_patches(path: AnyPath) -> dict[str, np.ndarray]:
    pictures = _read_pictures(path)
    if "images" not in pictures:
        raise ValueError(f"it has no images, only {', '.join(pictures)}")
    return pictures


def _read_embeddings(path: AnyPath) -> dict[str, np.ndarray]:
    arrays = _read_arrays(path, {"images": 4, "features": 2, "labels": 1, "class_names": 1})
    rows = {name: len(arrays[name]) for name in ("images", "features", "labels")}
    if len(set(rows.values())) > 1:
        raise ValueError(f"images, features and labels differ in number: {rows}")
    # Without the features of a diverged run: neither map nor neighbors are defined for them.
    finite = np.isfinite(arrays["features"]).all(axis=1)
    return arrays | {name: arrays[name][finite] for name in rows}


def _read_predictions(path: AnyPath) -> dict[str, np.ndarray]:
    arrays = _read_arrays(path, {"labels": 1, "predictions": 1, "class_names": 1})
    labels, predictions = arrays["labels"], arrays["predictions"]
    if len(labels) != len(predictions) or len(labels) == 0:
        raise ValueError(
            f"{len(labels)} labels and {len(predictions)} predictions; each label needs one, and there must be some"
        )
    if not (np.issubdtype(labels.dtype, np.integer) and np.issubdtype(predictions.dtype, np.integer)):
        raise ValueError(f"labels and predictions are whole numbers, not {labels.dtype} and {predictions.dtype}")
    if min(labels.min(), predictions.min()) < 0:
        raise ValueError("a label or prediction is negative")
    return arrays


def _read_arrays(path: AnyPath, ndim: Mapping[str, int]) -> dict[str, np.ndarray]:
    with paths.opened(path) as opened:
        with zipfile.ZipFile(opened) as archive:  # it may be compressed a thousandfold
            if (size := sum(member.file_size for member in archive.infolist())) > MAX_BYTES:
                raise ValueError(f"its arrays take {size:,} bytes; no more than {MAX_BYTES:,} are read")
        opened.seek(0)
        with np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ndim}
    for name, array in arrays.items():
        if array.ndim != ndim[name]:
            raise ValueError(f"{name} has shape {array.shape}, not {ndim[name]} dimensions")
    return arrays

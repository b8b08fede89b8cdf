"""TFDS data sets as sources of images, and Debian's Fashion-MNIST.

Nothing here imports TensorFlow. TFDS is imported only when one of its data sets is asked for.
"""

# pyright: reportMissingTypeStubs=false

import copy
import difflib
import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32
from tqdm import tqdm

from ssl_jax.data import fashion_mnist
from ssl_jax.data.formats import check_channels, decode_image
from ssl_jax.data.sources import ArraySource, Source, digest_of
from ssl_jax.data.targets import Targets, from_lists
from ssl_jax.paths import is_address

PREPARE = """
import sys, tensorflow_datasets as tfds
name, data_dir = sys.argv[1:]
tfds.builder(name, data_dir=data_dir or None).download_and_prepare(file_format="array_record")
"""


def tfds(name: str, *, split: str = "train", data_dir: str | None = None, channels: int | None = 3) -> Source:
    """A split of a TFDS data set, which is downloaded and prepared if it is not yet.

    "fashion_mnist" is read from Debian's package if that is installed and TFDS has not prepared it.

    Args:
      split: TFDS's own, with its slices ("train[:10%]").
      data_dir: where TFDS keeps its data, if not in its usual place.
      channels: 1 or 3; images are converted as they are read.
    Raises: ValueError; the message says what to do.
    """
    check_channels(channels)
    if is_address(data_dir or ""):
        raise ValueError(f"TFDS data sets are read from a disk, not from {data_dir}; copy {name} to one")
    return _named_source(name, split, data_dir, channels)


class TFDSSource(Source):
    """A split of a prepared TFDS data set. Its images are decoded here, never by TensorFlow.

    Args:
      builder: of a data set with an image feature. A ClassLabel `label` is the label; a sequence of ClassLabel,
        `labels` or the first one, is `targets`.
      split: as TFDS writes it: "train", "train[:10%]", "train+unlabelled".
      channels: 1 or 3, of the images as they are read.
    Raises: ValueError for data that cannot be read like this, and for a split that the data set does not have.
    """

    def __init__(self, builder: Any, split: str, channels: int | None):
        import tensorflow_datasets as tfds

        features = dict(builder.info.features.items())
        images = [name for name, feature in features.items() if isinstance(feature, tfds.features.Image)]
        if not images:
            raise ValueError(f"TFDS's {builder.name} has no image feature; its features are {', '.join(features)}")
        skip_decoding = {name: tfds.decode.SkipDecoding() for name in images}
        try:
            self._records = builder.as_data_source(split=split, decoders=skip_decoding)
        except NotImplementedError as error:
            raise ValueError(
                f"{builder.data_path} holds {builder.name} in a format without random access; "
                "move it away, so that it is prepared again as array_record"
            ) from error
        self.name, self._channels = f"{builder.name}/{split}", channels
        self._full_name = f"{builder.info.full_name}/{split}"  # with its version
        self._image = "image" if "image" in images else images[0]
        self._has_labels = isinstance(features.get("label"), tfds.features.ClassLabel)
        self.class_names = tuple(features["label"].names) if self._has_labels else ()
        lists = {
            name: tuple(feature.feature.names)
            for name, feature in features.items()
            if isinstance(feature, tfds.features.Sequence) and isinstance(feature.feature, tfds.features.ClassLabel)
        }
        self._several = next((name for name in ("labels", *lists) if name in lists), None)
        self._several_names = lists.get(self._several or "", ())

    @functools.cached_property
    def labels(self) -> Int32[np.ndarray, " images"] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The first use reads every record."""
        if not self._has_labels:
            return None
        return np.array(self._column("label"), np.int32)

    @functools.cached_property
    def targets(self) -> Targets | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The first use reads every record."""
        return None if self._several is None else from_lists(self._column(self._several), self._several_names)

    def _column(self, feature: str) -> list[Any]:
        """Of every record."""
        records = tqdm(self._records, f"reading the {feature} of {self.name}", unit=" images", delay=1)
        return [record[feature] for record in records]

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int) -> tuple[np.ndarray, int]:
        record = self._records[index]
        label = int(record["label"]) if self._has_labels else -1
        return decode_image(record[self._image], self._channels, f"{self.name}[{index}]"), label

    def encoded(self, index: int) -> bytes:
        return self._records[index][self._image]

    def with_channels(self, channels: int) -> "TFDSSource":
        found = copy.copy(self)
        found._channels = channels
        return found

    def digest(self) -> str:
        return digest_of([self._full_name])


def _named_source(name: str, split: str, data_dir: str | None, channels: int | None) -> Source:
    if name == "fashion_mnist" and not _tfds_folder(name, data_dir).exists() and (files := fashion_mnist.installed()):
        return _debians(files, split, channels)  # without importing TFDS, which takes seconds
    builder = _tfds_builder(name, data_dir)
    if not (builder.data_path / "dataset_info.json").exists():  # as builder.is_prepared(), without its warning
        if name == "fashion_mnist" and (files := fashion_mnist.installed()):
            return _debians(files, split, channels)
        _prepare(builder, name, data_dir)
        builder = _tfds_builder(name, data_dir)
    return TFDSSource(builder, split, channels)


def _debians(files: Any, split: str, channels: int | None) -> ArraySource:
    if channels not in (None, 1, 3):
        raise ValueError(f"Fashion-MNIST is gray; use channels 1, or 3 for three equal ones, not {channels}")
    images, labels = fashion_mnist.load(files, split)
    images = np.broadcast_to(images[..., None], (*images.shape, channels or 1))
    return ArraySource(images, labels, fashion_mnist.CLASS_NAMES, "fashion_mnist")


def _tfds_folder(name: str, data_dir: str | None) -> Path:
    """Where TFDS would have prepared a data set."""
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser() / name


def _tfds_builder(name: str, data_dir: str | None) -> Any:
    import tensorflow_datasets as tfds

    core: Any = tfds.core  # which imports its modules when they are first used
    if core.naming.parse_builder_name_kwargs(name)[0].namespace:
        raise ValueError(
            f"{name!r} has a namespace. Code from elsewhere would read it, and ssl_jax does not run "
            "such code; save its images to a folder, and use that"
        )
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        near = difflib.get_close_matches(name, [*tfds.list_builders(with_community_datasets=False), "folder"], n=1)
        remedy = (
            f"did you mean {near[0]!r}?"
            if near
            else "for your own images give their folder (in a config, data.name=folder with data.path)"
        )
        raise ValueError(f"TFDS has no data set {name!r}; {remedy}") from error


def _prepare(builder: Any, name: str, data_dir: str | None) -> None:
    """Downloads and converts in another process: here TensorFlow would take the accelerator's memory from JAX."""
    debian = f", or, as root: apt install {fashion_mnist.PACKAGE}" if name == "fashion_mnist" else ""
    if importlib.util.find_spec("tensorflow") is None:
        raise ValueError(
            f"{name} is not prepared in {builder.data_path}, and preparing it (once) needs TensorFlow: "
            f"pip install 'ssl_jax[prepare]'{debian}"
        )
    if subprocess.run([sys.executable, "-c", PREPARE, name, data_dir or ""]).returncode:
        raise ValueError(
            f"TFDS could not prepare {name}; its reason is above. Some data sets have to be downloaded by hand first, "
            f"as https://www.tensorflow.org/datasets/catalog/{name} says{debian}"
        )

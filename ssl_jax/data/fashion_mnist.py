"""Fashion-MNIST as Debian's package dataset-fashion-mnist installs it: four gzipped idx files."""

import gzip
import math
import subprocess
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from ssl_jax.data import splits

PACKAGE = "dataset-fashion-mnist"
CLASS_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"
)  # fmt: skip
PREFIXES = {"train": "train", "test": "t10k"}  # of a split's files
MAX_DEFLATE_RATIO = 1032  # gzip's format cannot compress data by more: zlib.net, "Technical details"
UNSIGNED_BYTE = 8  # the idx format's number for this type


def installed() -> dict[str, Path]:
    """{file name: path} of the package's gzipped files, as dpkg lists them; {} if it is not installed."""
    try:
        listing = subprocess.run(["dpkg", "-L", PACKAGE], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):  # no Debian, or not installed
        return {}
    paths = (Path(line) for line in listing.splitlines())
    files = {path.name: path for path in paths if path.name.endswith("-ubyte.gz") and path.is_file()}
    return files if len(files) == 2 * len(PREFIXES) else {}


def load(files: dict[str, Path], split: str) -> tuple[UInt8[np.ndarray, "images 28 28"], UInt8[np.ndarray, " images"]]:
    """(images, labels) of `split`, from the files that `installed` finds. A split may be a TFDS slice, "train[:25%]".

    Raises: ValueError for an unknown split, and for files that are broken or of another format.
    """

    def read(name: str, kind: str) -> UInt8[np.ndarray, "..."]:
        return read_idx(files[f"{PREFIXES[name]}-{kind}-ubyte.gz"])

    if split in PREFIXES:
        return read(split, "images-idx3"), read(split, "labels-idx1")

    labels = {name: read(name, "labels-idx1") for name in PREFIXES}
    parts = splits.parts(split, {name: len(of_split) for name, of_split in labels.items()})
    images = {name: read(name, "images-idx3") for name in {part.split for part in parts}}
    chosen = [
        np.concatenate([whole[part.split][part.start : part.end] for part in parts]) for whole in (images, labels)
    ]
    return chosen[0], chosen[1]


def read_idx(path: Path) -> UInt8[np.ndarray, "..."]:
    """The array in a gzipped idx file of bytes. Raises: ValueError for any other file, before it takes memory."""
    try:
        with gzip.open(path) as file:
            zeros, kind, num_axes = file.read(2), *file.read(2)
            if zeros != b"\0\0" or kind != UNSIGNED_BYTE:
                raise ValueError(f"{path} is not an idx file of bytes; install {PACKAGE} again")
            shape = np.frombuffer(file.read(4 * num_axes), ">u4").tolist()
            size = math.prod(shape)
            if len(shape) != num_axes or size > MAX_DEFLATE_RATIO * path.stat().st_size:
                raise ValueError(
                    f"{path} is too small for the array {shape} that its header names; install {PACKAGE} again"
                )
            data = file.read(size + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is broken ({error}); install {PACKAGE} again") from error
    if len(data) != size:
        raise ValueError(f"{path} does not hold the {size} bytes that its header says; install {PACKAGE} again")
    return np.frombuffer(data, np.uint8).reshape(shape)

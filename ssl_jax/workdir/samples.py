"""samples/NAME.npz: arrays that a run or an evaluation leaves for the report. report/read.py says what is in each."""

import numpy as np

from ssl_jax import paths
from ssl_jax.paths import AnyPath
from ssl_jax.workdir import files

FOLDER = "samples"


def save(directory: AnyPath, name: str, **arrays: np.ndarray) -> None:
    """Writes `directory`/NAME.npz whole or not at all."""
    paths.make_directory(directory)
    files.write_arrays(directory / f"{name}.npz", arrays)

"""samples/NAME.npz: arrays that a run or an evaluation leaves for the report. report/read.py says what is in each."""

from pathlib import Path

import numpy as np

from ssl_jax.workdir import files

FOLDER = "samples"


def save(directory: Path, name: str, **arrays: np.ndarray) -> None:
    """Writes `directory`/NAME.npz whole or not at all."""
    directory.mkdir(exist_ok=True)
    files.write_arrays(directory / f"{name}.npz", arrays)

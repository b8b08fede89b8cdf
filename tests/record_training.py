"""python tests/record_training.py PREFIX ARGUMENTS: ssl_jax.train with ARGUMENTS, as one of the processes of a run.

Writes the indices of the images of each batch that this process made, [steps, rows], to PREFIX with its number.
"""

import sys
from pathlib import Path

import jax
import numpy as np

from ssl_jax import train
from ssl_jax.data import pipeline

if __name__ == "__main__":
    prefix, *arguments = sys.argv[1:]
    made, seen = pipeline.train_batches, []

    class Recording:
        """What train.py uses of pipeline.Batches."""

        def __init__(self, *args, **options):
            self._batches = made(*args, **options)
            self.skipped = self._batches.skipped

        def __next__(self):
            batch = next(self._batches)
            seen.append(batch["index"])
            return batch

    pipeline.train_batches = Recording
    train.main(arguments)
    with Path(f"{prefix}{jax.process_index()}.npy").open("wb") as file:
        np.save(file, np.stack(seen))

"""python tests/record_training.py RUNS [--coordinator=...]: ssl_jax train for each of the runs, one after the other.

RUNS: a JSON file of [[prefix, arguments], ...]. Of each run this writes the indices of the images of each batch that
this process made, [steps, rows], to the prefix with the number of the process.
"""

import functools
import json
import sys
from pathlib import Path

import jax
import numpy as np

from ssl_jax import dist
from ssl_jax.cli import train
from ssl_jax.data import pipeline


def recording(made, seen):
    class Recording:
        """What train.py uses of pipeline.Batches."""

        def __init__(self, *args, **options):
            self._batches = made(*args, **options)
            self.skipped = self._batches.skipped

        def __next__(self):
            batch = next(self._batches)
            seen.append(batch["index"])
            return batch

    return Recording


if __name__ == "__main__":
    runs, *joining = sys.argv[1:]
    dist.start_processes = functools.cache(dist.start_processes)  # they meet once
    made = pipeline.train_batches
    for prefix, arguments in json.loads(Path(runs).read_text()):
        seen = []
        pipeline.train_batches = recording(made, seen)
        train.main([*arguments, *joining])
        with Path(f"{prefix}{jax.process_index()}.npy").open("wb") as file:
            np.save(file, np.stack(seen))

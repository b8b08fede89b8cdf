"""One run of a method by ssl_jax, for against_peers.py: peer_ours.py LIBRARY METHOD SEED STEPS FOLDER

FOLDER has images.npz, and gets the run and ours-METHOD-SEED.npz: features, and images per second.
"""

import shutil
import sys
from pathlib import Path

import jax
import numpy as np
from peer_libraries import LIBRARIES

import ssl_jax
from ssl_jax.workdir.metrics import read_metrics


def main():
    library, name, seed, steps, folder = LIBRARIES[sys.argv[1]], *sys.argv[2:5], Path(sys.argv[5])
    run = folder / f"run-{name}-{seed}"
    shutil.rmtree(run, ignore_errors=True)  # of another config, or stopped: its speed would not be that of a whole run
    ssl_jax.pretrain(library.config_of(name, int(seed), int(steps)), workdir=run)
    speeds = [line["images_per_second"] for line in read_metrics(run / "metrics.jsonl")[1:]]  # the first compiles
    backbone = ssl_jax.load_backbone(run)
    with np.load(folder / "images.npz") as images:
        features = {split: backbone.features(images[split]) for split in ("train", "test")}
    speed, versions = float(np.median(speeds)), f"ssl_jax {ssl_jax.__version__}, jax {jax.__version__}"
    np.savez(folder / f"ours-{name}-{seed}.npz", **features, images_per_second=speed, versions=versions)


if __name__ == "__main__":
    main()

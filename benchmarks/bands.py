"""What bands and bits are worth: six bands of 16 bits against three of them, and against 8 bits.

    python benchmarks/bands.py [--steps 600] [--seeds 0,1]

Each image is a known mixture of three sources: a piece of clothing (Fashion-MNIST, whose class is asked for) and two
of 16 smooth fields, which say nothing about it. Bands 0, 1 and 2 hold the fields alone; bands 3, 4 and 5 hold the
clothing, too. Values are those of a satellite's sensor, some 300 to 2300 of 65,535, with noise of 20. In 8 bits of the
whole range few gray levels are left, as where files are converted without a look at their values. All runs have the
same views, steps and seeds, and the range between percentiles 1 and 99 of what they read.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

from ssl_jax.data import opening

MIXING = np.float32(  # of clothing and two fields, for each band
    [[0, 0.7, 0.3], [0, 0.4, 0.6], [0, 0.2, 0.8], [0.4, 0.4, 0.2], [0.3, 0.2, 0.5], [0.5, 0.25, 0.25]]
)
IMAGES = {"train": 10_000, "test": 2_000}
DARK, SPAN, NOISE, FIELDS = 300, 2000, 20, 16
READINGS = {
    "6 bands, 16 bit": ("deep", ""),
    "bands 0, 1, 2, 16 bit": ("deep", "--config.data.bands=(0,1,2)"),
    "6 bands, 8 bit": ("shallow", ""),
}


def make(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(uint16 [count, 28, 28, 6], classes)."""
    rng = np.random.default_rng(split == "test")
    source = opening.load("fashion_mnist", split=split, channels=1)
    images, labels = zip(*(source.read(k) for k in range(count)), strict=True)
    coarse = np.random.default_rng(2).random((FIELDS, 4, 4))
    smooth = np.stack([cv2.resize(one, (28, 28), interpolation=cv2.INTER_CUBIC) for one in coarse])
    fields = smooth[rng.integers(0, FIELDS, (count, 2))].transpose(0, 2, 3, 1)
    sources = np.concatenate([np.stack(images) / 255.0, np.clip(fields, 0, 1)], axis=-1)
    values = DARK + SPAN * sources @ MIXING.T + rng.normal(0, NOISE, (count, 28, 28, 6))
    return np.clip(np.rint(values), 0, 65535).astype(np.uint16), np.array(labels)


def command(text: str) -> None:
    subprocess.run([sys.executable, "-m", "ssl_jax", *text.split()], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", default="0,1")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        arrays = {}
        for split, count in IMAGES.items():
            arrays[f"{split}_images"], arrays[f"{split}_labels"] = make(split, count)
        np.savez(f"{folder}/deep.npz", **arrays)
        eight = {name: np.rint(x / 257).astype(np.uint8) if x.ndim == 4 else x for name, x in arrays.items()}
        np.savez(f"{folder}/shallow.npz", **eight)
        levels = len(np.unique(eight["train_images"]))
        print(f"{IMAGES['train']:,} images, {given.steps} steps; in 8 bits {levels} gray levels are left", flush=True)
        for seed in given.seeds.split(","):
            for name, (file, how) in READINGS.items():
                run = Path(folder) / f"{name} {seed}".replace(" ", "_").replace(",", "")
                command(
                    f"train --config simclr:folder:satellite --config.data.path={folder}/{file}.npz {how} "
                    "--config.data.percentiles=(1.0,99.0) --config.data.image_size=(28,28) "
                    "--config.augment.view.size=(28,28) --config.augment.view.channel_drop=0 "
                    "--config.augment.view.quarter_turns=0 --config.augment.view.flip_vertical=0 "
                    "--config.augment.view.blur=0 "
                    f"--config.steps={given.steps} --config.seed={seed} --config.evaluate_every=0 --workdir {run}"
                )
                command(f"evaluate --workdir {run} --baselines random,pixels --protocols knn,linear")
                found = json.loads((run / "evaluation.json").read_text())
                for column in ("pretrained", "random", "pixels"):
                    scores = found[column]
                    print(
                        f"seed {seed}  {name:22} {column:11} kNN {scores['knn/k20_t0.07/top1']['mean']:5.1f}  "
                        f"linear, 10 labels {scores['linear/10_per_class/top1']['mean']:5.1f}  "
                        f"all {scores['linear/all/top1']['mean']:5.1f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()

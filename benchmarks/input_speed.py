"""The processor time to read, decode and crop JPEGs for training, of two versions of the code, alternately.

    git worktree add ../before COMMIT
    python benchmarks/input_speed.py ../before . [--rounds 5]

Prints the images per core-second of each version, the medians over the rounds, and their ratio, for folders of JPEGs of
several sizes. Two views of 224 pixels are cropped of each image, of 64 pixels for the smallest, by one thread.
Processor time, since others may use the machine.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

KINDS = {(64, 64): 2000, (375, 500): 400, (1080, 1920): 100, (3000, 4000): 24}  # (height, width): images
QUALITY = 90
READ = """
import sys, time
from ssl_jax import data
from ssl_jax.data import pipeline
from ssl_jax.data.crop import RandomCrop
folder, side, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
batch = min(count, 64)
batches = pipeline.train_batches(
    data.folder(folder), seed=0, batch_size=batch, image_size=(side, side), memory_bytes=0, threads=1, prefetch=0,
    crops=[RandomCrop((side, side), (0.08, 1.0), (3 / 4, 4 / 3))] * 2,
)
next(batches)
begun, images = time.process_time(), 0
while time.process_time() < begun + float(sys.argv[4]):
    next(batches)
    images += batch
print(images / (time.process_time() - begun))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of a processor, for each round and version")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        for (height, width), count in KINDS.items():
            folder = Path(made) / f"{width}x{height}"
            folder.mkdir()
            rng = np.random.default_rng(0)
            for k in range(count):
                coarse = rng.integers(0, 256, (height // 12, width // 12, 3), np.uint8)
                image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
                cv2.imwrite(str(folder / f"{k}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
            side = min(height, 224)
            found: dict[Path, list[float]] = {given.before: [], given.after: []}
            for _ in range(given.rounds):
                for root, times in found.items():
                    command = [sys.executable, "-c", READ, str(folder), str(side), str(count), str(given.seconds)]
                    env = {**os.environ, "PYTHONPATH": str(root.resolve())}
                    times.append(float(subprocess.check_output(command, cwd=root, env=env)))
            before, after = (np.array(times) for times in found.values())
            ratios = after / before
            print(
                f"{width} x {height}: {np.median(before):,.0f} images per core-second before, "
                f"{np.median(after):,.0f} after; "
                f"ratio {np.median(ratios):.2f}, in single rounds {ratios.min():.2f} to {ratios.max():.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()

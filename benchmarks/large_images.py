"""Large images by windows: the memory of a run, and what windows see that whole images lose.

python benchmarks/large_images.py memory      # a tiled TIFF of 20,000 x 20,000 pixels, 3 bands of 16 bits
python benchmarks/large_images.py objects     # JPEGs of 5000 x 8000 pixels, crosses or rings of 12 pixels

`memory` trains on one scene, and prints the most memory that the process held: its own, and with the pages of the file,
which the system takes back when it needs them. `objects` trains SimCLR on the same scenes whole, shrunk to 64 x 64
pixels, and by windows, and asks by a linear probe whether a scene holds crosses or rings. The grounds of all scenes
have the same statistics. A supervised network, untrained networks and the pixels say what the same windows hold. Both
run the commands that a user types. Linux only.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import tifffile

SIDE, TILE = 20_000, 256
HEIGHT, WIDTH = 5000, 8000  # of the JPEGs, in pixels
OBJECT, CELL = 12, 40  # side of an object, and of the square that holds one or none, in pixels
CONTRAST, NOISE, GROUND = 40, 6, (110, 146)  # of 0..255
SCENES = {"train": 4, "test": 8}  # of each class
CLASSES = ("crosses", "rings")
WINDOW, BATCH, STEPS, SUPERVISED_STEPS = 128, 128, 200, 100
VIEWS = "--config.augment.view.crop_area=(0.5,1.0)"  # of small crops, few objects would be in both


def memory(folder: Path, steps: int) -> None:
    scene = folder / "scene" / "scene.tif"
    scene.parent.mkdir()
    tiles = (-(-SIDE // TILE)) ** 2
    tifffile.imwrite(
        scene,
        _tiles(tiles),
        shape=(SIDE, SIDE, 3),
        dtype=np.uint16,
        tile=(TILE, TILE),
        photometric="rgb",
        compression="zlib",
        compressionargs={"level": 1},
    )
    print(
        f"{SIDE} x {SIDE} pixels, {SIDE * SIDE * 6 / 1e9:.1f} GB decoded, {scene.stat().st_size / 1e9:.1f} GB on disk"
    )
    own, whole = watched(
        f"train --config simclr:folder --config.data.path={scene.parent} --config.data.window=128 "
        f"--config.steps={steps} --config.batch_size=64 --config.data.memory_bytes=0 --workdir {folder / 'run'}"
    )
    print(f"{steps} steps of 64 windows: at most {own:.2f} GB of its own, {whole:.2f} GB with pages of the file")


def _tiles(count: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 2**14, (count, 4, 4, 3), np.uint16)
    noise = rng.integers(0, 64, (TILE, TILE, 3), np.uint16)
    for few in coarse:
        yield cv2.resize(few, (TILE, TILE), interpolation=cv2.INTER_CUBIC) + noise


def watched(arguments: str) -> tuple[float, float]:
    """(most memory of its own, most memory with the pages of files) of the command, in GB."""
    process = subprocess.Popen([sys.executable, "-m", "ssl_jax", *arguments.split()])
    own = whole = 0
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except ProcessLookupError:
            break
        held = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if "kB" in rest}
        own, whole = max(own, held.get("RssAnon", 0)), max(whole, held.get("VmRSS", 0))
        time.sleep(0.1)
    if process.wait():
        raise SystemExit(f"ssl_jax {arguments} failed")
    return own * 1024 / 1e9, whole * 1024 / 1e9


def objects(folder: Path, steps: int, seed: int = 0) -> None:
    """Settings were chosen with seed 1000, whose scenes are others."""
    scenes = folder / "scenes"
    for split, count in SCENES.items():
        for label, name in enumerate(CLASSES):
            (scenes / split / name).mkdir(parents=True)
            for k in range(count):
                image = _scene(label, np.random.default_rng((seed, label, k, split == "test")))
                cv2.imwrite(str(scenes / split / name / f"{k}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 90])
    data, windows = f"--config.data.path={scenes}", f"--config.data.window={WINDOW} --config.batch_size={BATCH}"
    whole = f"--config.batch_size={len(CLASSES) * SCENES['train']}"
    _train("simclr", steps, f"{data} {whole}", folder / "whole")
    _score("shrunk to 64 x 64", folder / "whole", "mean", "pixels")
    _train("simclr", steps, f"{data} {windows}", folder / "windows")
    _score("windows, mean over an image", folder / "windows", "mean", "pixels")
    _score("windows, each", folder / "windows", "all", "random")
    _train("supervised", SUPERVISED_STEPS, f"{data} {windows}", folder / "supervised")
    _score("supervised, windows, mean over an image", folder / "supervised", "mean", "none")
    _score("supervised, windows, each", folder / "supervised", "all", "none")


def _train(method: str, steps: int, flags: str, run: Path) -> None:
    begun = time.perf_counter()
    command(
        f"train --config {method}:folder {flags} {VIEWS} --config.model.width=0.5 --config.steps={steps} "
        f"--config.optimizer.warmup_steps={steps // 10} --config.evaluate_every=0 --workdir {run}"
    )
    print(f"{run.name}: trained in {time.perf_counter() - begun:.0f} s", flush=True)


def _score(name: str, run: Path, windows: str, baselines: str) -> None:
    begun = time.perf_counter()
    command(f"evaluate --workdir {run} --protocols linear --windows {windows} --baselines {baselines}")
    found = json.loads((run / "evaluation.json").read_text())
    scores = {of: found[of]["linear/all/top1"]["mean"] for of in ("pretrained", "random", "pixels") if of in found}
    listed = ", ".join(f"{of} {score:.1f} %" for of, score in scores.items())
    print(
        f"{name}: {listed}; test set of {len(CLASSES) * SCENES['test']} images, {found['data']['test_images']:,} read; "
        f"{time.perf_counter() - begun:.0f} s",
        flush=True,
    )


def _scene(label: int, rng: np.random.Generator) -> np.ndarray:
    """A gray scene with objects of one class, each lighter or darker than the ground.

    Half of the cells of CELL x CELL pixels hold an object, at random. Crosses and rings have equally many pixels, and
    are as often lighter as darker, so means over many pixels do not tell them apart.
    """
    coarse = rng.uniform(*GROUND, (HEIGHT // 500, WIDTH // 500)).astype(np.float32)
    image = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    image += NOISE * rng.standard_normal(image.shape, np.float32)
    rows, columns = np.meshgrid(*[np.arange(OBJECT) - (OBJECT - 1) / 2] * 2, indexing="ij")
    far = np.hypot(rows, columns)
    shape = [np.minimum(np.abs(rows), np.abs(columns)) < 2, (far > 3) & (far < 6)][label]  # 80 pixels each
    tops, lefts = np.meshgrid(range(0, HEIGHT, CELL), range(0, WIDTH, CELL), indexing="ij")
    tops, lefts = (first.ravel() + rng.integers(0, CELL - OBJECT, first.size) for first in (tops, lefts))
    down, across = np.nonzero(shape)
    change = rng.choice([-CONTRAST, 0, 0, CONTRAST], tops.size)
    image[tops[:, None] + down, lefts[:, None] + across] += change[:, None]
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def command(arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "ssl_jax", *arguments.split()], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("memory", "objects"))
    parser.add_argument("--steps", type=int, default=STEPS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        {"memory": memory, "objects": objects}[given.what](Path(made), given.steps)

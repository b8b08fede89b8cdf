"""Does a small student learn more from a teacher than by itself? python benchmarks/distill.py [--seeds 0,1,2] [--test]

On Fashion-MNIST, trains a teacher by SimCLR (a wider resnet8, for more steps). Then it trains the same small student,
for the same steps of as many images, once by `distill` from this teacher and once by SimCLR. Prints the accuracy of
teacher and students in percent, of frozen features: weighted kNN, and a linear probe with 10 labels per class (mean of
5 draws).

Networks are trained on the first 90 % of the training images. Without --test they are measured on the other 10 %: by
these, options are chosen. What was stopped goes on where it was; scores are kept in WORKDIR/scores.json.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ssl_jax import load_backbone
from ssl_jax.data import opening
from ssl_jax.evaluation import knn, linear
from ssl_jax.evaluation.features import BATCH, extract, read_batches
from ssl_jax.workdir import files

ROOT = Path(__file__).parents[1]
KNN, LINEAR = "kNN", "10 labels"
TRAIN, VALIDATION = "train[:90%]", "train[90%:]"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="of a student")
    parser.add_argument("--teacher-steps", type=int, default=1000)
    parser.add_argument("--teacher-width", type=float, default=4.0, help="factor of resnet8's channels")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--seeds", default="0", help="of the students, with commas")
    parser.add_argument("--option", action="append", default=[], help="of distill, as method.local_views=2")
    parser.add_argument("--test", action="store_true", help="measures on the test images")
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / "distill")
    arguments = parser.parse_args()
    shared = [f"data.split={TRAIN}", f"batch_size={arguments.batch_size}", "log_every=50", "checkpoint_every=50"]
    warm = {steps: f"optimizer.warmup_steps={steps // 10}" for steps in (arguments.steps, arguments.teacher_steps)}
    root = arguments.workdir / f"batch-{arguments.batch_size}"
    width, steps = arguments.teacher_width, arguments.teacher_steps
    teacher = root / f"teacher-{width}-{steps}"
    train("simclr", teacher, *shared, f"model.width={width}", f"steps={steps}", warm[steps])
    runs = {"teacher": [teacher]}
    student = [*shared, f"steps={arguments.steps}", warm[arguments.steps]]
    for seed in map(int, arguments.seeds.split(",")):
        for method, options in {"simclr": [], "distill": [f"method.teacher={teacher}", *arguments.option]}.items():
            name = "-".join([method, str(arguments.steps), *(option.replace("/", "+") for option in options[1:])])
            workdir = root / (f"{name}-{teacher.name}" if options else name) / str(seed)
            train(method, workdir, *student, f"seed={seed}", *options)
            runs.setdefault(name, []).append(workdir)
    split = "test" if arguments.test else VALIDATION
    print(f"accuracy in percent on {split}")
    for name, workdirs in runs.items():
        found = [scores(workdir, split, arguments.workdir / "scores.json") for workdir in workdirs]
        for protocol in (KNN, LINEAR):
            values = [one[protocol] for one in found]
            spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
            print(f"{name:40} {protocol:10} {np.mean(values):.2f}{spread} of {', '.join(f'{v:.2f}' for v in values)}")


def train(method, workdir, *settings):
    """Trains, or goes on, until the run in `workdir` is finished."""
    if (workdir / "backbone.safetensors").exists():
        return
    workdir.mkdir(parents=True, exist_ok=True)
    flags = [f"--config={method}:tiny", f"--workdir={workdir}", *(f"--config.{setting}" for setting in settings)]
    with (workdir / "log.txt").open("a") as log:
        subprocess.run([sys.executable, "-m", "ssl_jax", "train", *flags], cwd=ROOT, check=True, stdout=log, stderr=log)
    # A run that is asked to stop saves its state and reports no error.
    if not (workdir / "backbone.safetensors").exists():
        sys.exit(f"{workdir} was stopped; the same command goes on from there")


def scores(workdir, split, path):
    """{protocol: accuracy} of a run's backbone on a split; kept in the file at `path`."""
    known, key = json.loads(path.read_text()) if path.exists() else {}, f"{workdir} on {split}"
    if key not in known:
        features = load_backbone(workdir).features
        options: Any = dict(image_size=(28, 28), pixel_bytes=1, memory_bytes=2**30)
        splits = (opening.load("fashion_mnist", split=name, channels=1) for name in (TRAIN, split))
        pairs = [extract(features, read_batches(source, **options)(), BATCH) for source in splits]
        (h, y, _), (test_h, test_y, _) = pairs
        predicted = knn.weighted_knn(h, y, test_h, num_classes=10, k=(20,), temperature=0.07)[20]
        probe = linear.linear_probe(h, y, test_h, test_y, num_classes=10, per_class=10, seeds=range(5))
        known[key] = {KNN: 100 * float(np.mean(predicted == test_y)), LINEAR: probe.mean}
        files.write(path, json.dumps(known, indent=1) + "\n")
    return known[key]


if __name__ == "__main__":
    main()

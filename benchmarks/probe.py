"""Our linear probe beside scikit-learn's logistic regression: python benchmarks/probe.py --workdir DIR

On frozen features of Fashion-MNIST by the backbone of DIR, a run of `ssl_jax train`. First the accuracy of both at one
strength of the penalty with all labels, in points; then the seconds that each takes to choose among all strengths on
the same held-out fifth and to fit the best to all: ours with its compilation, and once more without. Both run on the
cores that this process has, one after the other.
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from ssl_jax import config as configs
from ssl_jax import load_backbone
from ssl_jax.evaluation import linear
from ssl_jax.evaluation.features import BATCH, extract, read_batches
from ssl_jax.evaluation.labels import draw_labels
from ssl_jax.training import reading
from ssl_jax.workdir import config_file

CLASSES = 10


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--images", type=int, default=60_000, help="of the training set, the first")
    parser.add_argument("--strength", type=float, default=10.0, help="of the penalty, for the accuracies")
    parser.add_argument("--iterations", type=int, default=1000, help="scikit-learn's max_iter")
    arguments = parser.parse_args()
    config = configs.parse(config_file.read_config(arguments.workdir))
    backbone = load_backbone(arguments.workdir)
    data = config.data
    options = dict(image_size=data.image_size, pixel_bytes=data.channels, memory_bytes=data.memory_bytes)
    (x, y, _), (test_x, test_y, _) = (
        extract(backbone.features, read_batches(source, **options)(), BATCH) for source in reading.source_pair(config)
    )
    data = x[: arguments.images], y[: arguments.images], test_x, test_y
    print(f"{len(data[0])} images, {x.shape[1]} dimensions", flush=True)
    ours, theirs = (
        timed(search, *data, strengths=(arguments.strength,), iterations=arguments.iterations)
        for search in (by_ours, by_scikit_learn)
    )
    print(f"strength {arguments.strength}: ours {ours[0]:.2f} %, scikit-learn {theirs[0]:.2f} %", flush=True)
    compiling, ours, theirs = (
        timed(search, *data, strengths=linear.STRENGTHS, iterations=arguments.iterations)
        for search in (by_ours, by_ours, by_scikit_learn)
    )
    print(f"{len(linear.STRENGTHS)} strengths, with a choice among them:")
    sides = {"ours, compiling": compiling, "ours, compiled": ours, "scikit-learn": theirs}
    for name, (accuracy, seconds, core) in sides.items():
        print(
            f"{name:<16}{accuracy:.2f} % in {seconds:.1f} s, of a core {core:.1f} s;"
            f" scikit-learn takes {theirs[1] / seconds:.1f} times as long, of a core {theirs[2] / core:.1f}"
        )


def timed(search, *data, strengths, iterations):
    """(accuracy in percent, seconds, seconds of a core)"""
    begun = time.perf_counter(), time.process_time()
    accuracy = search(*data, strengths, iterations)
    return accuracy, time.perf_counter() - begun[0], time.process_time() - begun[1]


def by_ours(x, y, test_x, test_y, strengths, _):
    return linear.linear_probe(x, y, test_x, test_y, num_classes=CLASSES, per_class=None, strengths=strengths).mean


def by_scikit_learn(x, y, test_x, test_y, strengths, iterations):
    scaler = StandardScaler().fit(x)
    x, test_x = scaler.transform(x), scaler.transform(test_x)

    def fit(rows, strength):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return LogisticRegression(C=1 / strength, max_iter=iterations).fit(x[rows], y[rows])

    index, held_out = draw_labels(y, CLASSES, None, 0)
    strength = strengths[0]
    if len(strengths) > 1:
        rows, left = index[~held_out], index[held_out]
        losses = [log_loss(y[left], fit(rows, s).predict_proba(x[left])) for s in strengths]
        strength = strengths[int(np.argmin(losses))]
    return 100.0 * fit(index, strength).score(test_x, test_y)


if __name__ == "__main__":
    main()

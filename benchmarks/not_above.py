"""Why a method's kNN is not above its untrained network: python benchmarks/not_above.py deepcluster [--steps 1500]

Trains the `tiny` config on a part of the training images, and prints its kNN (k 20, temperature 0.07) on the other
part, beside that of each variant of the untrained network: of features as they are, and whitened (each direction of
the training features has variance 1), which shows whether a few directions hide the others. For methods that train on
images of their own, as colorization, also on these, each among all others.
"""

import argparse
from pathlib import Path

import methods
import numpy as np
from methods_worlds import LONGER, WORLDS, configured, evaluated, without_training

from ssl_jax import config as configs
from ssl_jax import load_backbone
from ssl_jax.evaluation import knn
from ssl_jax.evaluation.features import BATCH, extract, read_batches
from ssl_jax.methods import METHODS
from ssl_jax.training import reading

HELD_OUT = WORLDS["held_out"]
FLOOR = 1e-6  # of the largest variance: smaller ones are rounding


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=METHODS, metavar="METHOD")
    parser.add_argument("--steps", type=int, default=LONGER * 300)
    parser.add_argument("--workdir", type=Path, default=methods.ROOT / "runs" / "not_above")
    arguments = parser.parse_args()
    config = configured(arguments.name, 0, arguments.steps, HELD_OUT)
    run = methods.pretrain(config, arguments.workdir / str(arguments.steps), HELD_OUT)
    (train, _), (test, _) = methods.images_of(evaluated(config, HELD_OUT))
    backbones = {"trained": load_backbone(run), **methods.untrained_variants(without_training(config, HELD_OUT))}
    for name, backbone in backbones.items():
        show(name, held_out(backbone.features, train, test))
    if config.data.name != HELD_OUT.name:
        print("on the images that it is trained on, each among all others:")
        source, _ = reading.source_pair(configs.parse(config))
        own = config.data
        options = dict(image_size=own.image_size, pixel_bytes=own.channels, memory_bytes=own.memory_bytes)
        batches = read_batches(source, **options)
        for name, backbone in backbones.items():
            show(name, among_others(backbone.features, batches))


def show(name, accuracies):
    plain, whitened = accuracies
    print(f"{name:26} kNN {plain:.1f}, of whitened features {whitened:.1f}", flush=True)


def held_out(features, train, test):
    """[accuracy of features as they are, of whitened ones], percent."""
    (h, y, _), (test_h, test_y, _) = (extract(features, batches(), BATCH) for batches in (train, test))
    accuracies = []
    for change in (lambda rows: rows, whitening(h)):
        options = dict(num_classes=int(y.max()) + 1, k=(20,), temperature=0.07)
        predicted = knn.weighted_knn(change(h), y, change(test_h), **options)[20]
        accuracies.append(100 * float(np.mean(predicted == test_y)))
    return accuracies


def among_others(features, batches):
    """As `held_out`, of each image among all others."""
    h, y, _ = extract(features, batches(), BATCH)
    accuracies = []
    for change in (lambda rows: rows, whitening(h)):
        z = change(h)
        z = z / np.linalg.norm(z, axis=1, keepdims=True)
        cosines = z @ z.T
        np.fill_diagonal(cosines, -np.inf)
        nearest = np.argsort(-cosines, axis=1)[:, :20]
        votes = np.zeros((len(z), int(y.max()) + 1))
        weights = np.exp(np.take_along_axis(cosines, nearest, axis=1) / 0.07)
        np.add.at(votes, (np.arange(len(z))[:, None], y[nearest]), weights)
        accuracies.append(100 * float(np.mean(votes.argmax(axis=1) == y)))
    return accuracies


def whitening(h):
    mean = h.mean(axis=0)
    variances, directions = np.linalg.eigh(np.cov((h - mean).T))
    scale = np.sqrt(np.maximum(variances, FLOOR * variances.max()))
    return lambda rows: (rows - mean) @ directions / scale


if __name__ == "__main__":
    main()

"""What the pretext tasks come to on images that were not trained on: python benchmarks/pretext.py [--steps 300]

Of each method's run by benchmarks/methods.py, which is made if it is not there, the metrics on Fashion-MNIST's test
images, augmented as in training: the accuracy of tasks with classes beside chance; the error of what is drawn beside
that of the mean (of each patch, or of all pixels); and whether both players of a GAN are alive. Writes docs/pretext.md.
"""

import argparse
from pathlib import Path

import jax
import methods
import numpy as np

from ssl_jax.data import pipeline
from ssl_jax.training import augmenting

RESULTS = methods.ROOT / "docs" / "pretext.md"
# Method -> its accuracy by chance.
CLASSIFIERS = {
    "rotation": lambda method: 1 / 4,
    "relative_patch": lambda method: 1 / 8,
    "jigsaw": lambda method: 1 / method.permutations,
}
# Method -> (its error, that of the mean), metrics both.
PAINTERS = {
    "mae": ("loss", "patch_mean_loss"),
    "aim": ("loss", "patch_mean_loss"),
    "simmim": ("loss", "mean_loss"),
    "maskfeat": ("loss", "mean_loss"),
    "inpainting": ("loss", "mean_loss"),
    "denoising": ("loss", "mean_loss"),
    "vae": ("reconstruction", "mean_loss"),
    "beit_kmeans": ("loss", "frequency_loss"),
}
GANS = ("dcgan", "bigan")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = (*CLASSIFIERS, *PAINTERS, *GANS)
    parser.add_argument("--methods", default=",".join(names), help="names, with commas; all by default")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batches", type=int, default=20, help="of test images, as large as in training")
    parser.add_argument("--workdir", type=Path, default=methods.ROOT / "runs" / "methods")
    arguments = parser.parse_args()
    found = {}
    for name in arguments.methods.split(","):
        workdir = methods.pretrain(methods.configured(name, 0, arguments.steps), arguments.workdir)
        found[name] = held_out(workdir, arguments.batches)
        print(name, found[name][1], flush=True)
    RESULTS.write_text(table(found, arguments))
    print(f"wrote {RESULTS}")


def held_out(workdir, batches):
    """(the method, its metrics' means over batches of test images)"""
    config, method, state, _, test = methods.restore(workdir)
    views = augmenting.augmentations(config, method.views)
    augment = augmenting.make_views(config, method, views)

    @jax.jit
    def metrics(rng, batch):
        rng_augment, rng_loss = jax.random.split(rng)
        found = method.loss(state.params, state.model_state, augment(rng_augment, batch), rng_loss)[1][1]
        return {name: value for name, value in found.items() if value.ndim == 0}

    made = pipeline.train_batches(
        test,
        seed=0,
        batch_size=config.batch_size,
        image_size=config.data.image_size,
        crops=[view.crop for view in views],
    )
    values = [metrics(jax.random.key(number), next(made)) for number in range(batches)]
    return method, {name: float(np.mean([value[name] for value in values])) for name in values[0]}


def table(found, arguments):
    lines = [
        "# Pretext tasks on held-out images",
        "",
        f"Each method's `tiny` config after {arguments.steps} steps on Fashion-MNIST: its own task on "
        f"{arguments.batches} batches of test images, augmented as in training (and with BatchNorm's statistics of the "
        "batch).",
        "",
        "| method | accuracy in percent | by chance |",
        "|---|---|---|",
    ]
    for name in (name for name in CLASSIFIERS if name in found):
        method, metrics = found[name]
        lines.append(f"| {name} | {100 * metrics['accuracy']:.1f} | {100 * CLASSIFIERS[name](method):.1f} |")
    lines += ["", "| method | error | of the mean | ratio |", "|---|---|---|---|"]
    for name in (name for name in PAINTERS if name in found):
        ours, mean = (found[name][1][metric] for metric in PAINTERS[name])
        lines.append(f"| {name} | {ours:.3f} | {mean:.3f} | {ours / mean:.2f} |")
    lines += [
        "",
        "Errors are the losses of the methods; of beit_kmeans they are cross entropies of the tokens, the mean's that "
        "of a prediction of how frequent each is.",
        "",
        "| GAN | discriminator's loss | generator's loss | discriminator's accuracy in percent |",
        "|---|---|---|---|",
    ]
    for name in (name for name in GANS if name in found):
        metrics = found[name][1]
        losses = (f"{metrics[loss]:.2f}" for loss in ("discriminator_loss", "generator_loss"))
        lines.append(f"| {name} | {' | '.join(losses)} | {100 * metrics['accuracy']:.1f} |")
    lines += ["", "Colorization needs color images: `python benchmarks/colorization.py` measures it on those."]
    lines += ["", f"Made by `python benchmarks/pretext.py --steps {arguments.steps}` with JAX {jax.__version__}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

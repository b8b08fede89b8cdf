"""Linear probes trained step by step, as papers do: a whole grid of learning rates and weight decays at once."""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Integer, Shaped

from ssl_jax import optim
from ssl_jax.evaluation import many_heads
from ssl_jax.evaluation._checks import check_labeled, check_same_dim
from ssl_jax.evaluation.labels import draw_labels
from ssl_jax.evaluation.many_heads import Block, Head, Params, Scores, Shape, Training
from ssl_jax.evaluation.probe_recipes import ProbeRecipe
from ssl_jax.ops import normalize

INIT_STD = 0.01  # of every recipe; biases start at 0
# Rows whose logits are computed at a time when heads are scored.
ROWS = 4096
LAYER_NORMS = ("layer_norm", "unit_layer_norm")
BATCH_NORM_EPS, LAYER_NORM_EPS = 1e-6, 1e-5  # MAE's; torch's
RUNNING = 0.9  # decay of the running statistics: momentum 0.1 in torch


@dataclasses.dataclass(frozen=True)
class SGDProbe:
    """The result of a probe, and the settings that it was trained with.

    accuracy: on the test set, top-1 in percent.
    predictions: classes of the test images, int32.
    lr, weight_decay: the chosen ones; lr is stated for a batch of 256 images, as in recipes.
    peak_lr: the highest learning rate of the training: lr * batch_size / 256.
    batch_size: the recipe's, or the number of training images if that is less.
    steps: of the fit to all training images.
    held_out: top-1 in percent on the held-out fifth, for each lr and weight decay; NaN for heads that diverged. None if
      the recipe leaves no choice.
    """

    accuracy: float
    predictions: Int[np.ndarray, "test"]
    lr: float
    weight_decay: float
    peak_lr: float
    batch_size: int
    steps: int
    held_out: Float[np.ndarray, "lrs weight_decays"] | None


def sgd_probe(
    train_features: Float[np.ndarray, "train dim"] | Float[np.ndarray, "passes train dim"],
    train_labels: Integer[np.ndarray, "train"],
    test_features: Float[np.ndarray, "test dim"],
    test_labels: Integer[np.ndarray, "test"],
    *,
    num_classes: int,
    recipe: ProbeRecipe,
    seed: int = 0,
    groups: Shaped[np.ndarray, "train"] | None = None,
) -> SGDProbe:
    """Test accuracy of a linear classifier trained as `recipe` says.

    A fifth of each class's training images is held out. The grid has one head for each learning rate and weight decay;
    all heads see the same batches, in one wide matmul. The head with the highest held-out accuracy is chosen (of
    equals, the one with the least cross entropy there). It is then trained anew on all training images, and sees the
    test set once.

    The papers train on random crops and flips, made anew in every epoch. Here features are cached: those of images
    without augmentation, or of several augmented passes, which epochs take in turn. The choice uses the held-out images
    of the first pass.

    Args:
      train_features: finite, not scaled: the recipe scales them. Epoch e trains on pass e mod passes. Only one pass at
        a time is on the device.
      train_labels, test_labels: in 0 .. num_classes - 1. Test labels only serve to count the hits.
      num_classes: at least 2.
      recipe: one of `probe_recipes.RECIPES`, or your own.
      seed: of the held-out images, the initial weights and the order of the batches.
      groups: what each training image belongs to, see `draw_labels`: none is on both sides of a choice.

    Raises: ValueError for negative labels, features that are not finite, or if all heads have diverged.
    Source: see each recipe; many heads at once as in DINOv2's code (Oquab et al. 2023, arXiv:2304.07193, B.3).
    """
    passes = train_features if train_features.ndim == 3 else train_features[None]
    if len(passes) == 0:
        raise ValueError(
            "train features must be [train, dim] or [passes, train, dim] with at least one pass, got "
            f"{train_features.shape}"
        )
    for features in passes:
        check_labeled("train", features, train_labels, num_classes)
    check_labeled("test", test_features, test_labels, num_classes)
    check_same_dim(passes[0], test_features)

    grid = recipe.grid
    best, held_out_accuracy = 0, None
    if len(grid) > 1:
        found = search(passes, train_labels, num_classes=num_classes, recipe=recipe, seed=seed, groups=groups)
        best = max(range(len(grid)), key=lambda head: rank(found, head))
        held_out_accuracy = found.accuracies.reshape(len(recipe.lrs), len(recipe.weight_decays))

    lr, weight_decay = grid[best]
    probe = training(passes, train_labels, num_classes=num_classes, recipe=recipe, seed=seed)
    heads = probe.train(np.arange(len(train_labels)), [grid[best]])
    if not all(np.isfinite(leaf).all() for leaf in heads.params.values()):
        raise ValueError(
            f"the head with lr {lr} and weight decay {weight_decay} diverged; give a recipe with lower lrs"
        )
    predictions = np.concatenate([*probe.predict(heads, test_features, batch_size=ROWS)])
    batch_size = min(recipe.batch_size, len(train_labels))
    return SGDProbe(
        accuracy=100.0 * float(np.mean(predictions == test_labels)),
        predictions=predictions.astype(np.int32),
        lr=lr,
        weight_decay=weight_decay,
        peak_lr=lr * batch_size / 256,
        batch_size=batch_size,
        steps=len(train_labels) // batch_size * recipe.epochs,
        held_out=held_out_accuracy,
    )


def search(
    passes: Float[np.ndarray, "passes train dim"],
    labels: Integer[np.ndarray, "train"],
    *,
    num_classes: int,
    recipe: ProbeRecipe,
    seed: int = 0,
    groups: Shaped[np.ndarray, "train"] | None = None,
) -> Scores:
    """Trains each head of the recipe's grid on four fifths of each class's images, and scores it on the rest."""
    index, held_out = draw_labels(labels, num_classes, None, seed, groups)
    fitted, held_out = index[~held_out], index[held_out]
    probe = training(passes, labels, num_classes=num_classes, recipe=recipe, seed=seed)
    return probe.score(probe.train(fitted, recipe.grid), held_out, batch_size=ROWS)


def rank(scores: Scores, head: int) -> tuple[float, float]:
    """Sorts heads: the greater, the better."""
    finite = bool(np.isfinite(scores.losses[head]))
    return (float(scores.accuracies[head]), -float(scores.losses[head])) if finite else (-1.0, 0.0)


def training(
    passes: Float[np.ndarray, "passes train dim"],
    labels: Integer[np.ndarray, "train"],
    *,
    num_classes: int,
    recipe: ProbeRecipe,
    seed: int = 0,
) -> Training:
    """The recipe's training. Its grid is of learning rates that are stated for a batch of 256 images.

    The last batch of an epoch is left out if it is not full.
    """
    dim = passes.shape[-1]
    kernel = INIT_STD * jax.random.normal(jax.random.key(seed), (dim, num_classes))
    params = {"kernel": kernel, "bias": jnp.zeros(num_classes)}
    if recipe.scaling in LAYER_NORMS:
        params |= {"norm_scale": jnp.ones(dim), "norm_bias": jnp.zeros(dim)}
    running = {"mean": jnp.zeros(dim), "variance": jnp.ones(dim)} if recipe.scaling == "batch_norm" else {}

    def epochs(rows: Int[np.ndarray, "rows"]) -> Iterator[Block]:
        batch_size = min(recipe.batch_size, len(rows))
        shares = _shares(recipe, len(rows) // batch_size) * batch_size / 256
        x, y = jnp.asarray(passes[0], jnp.float32), jnp.asarray(labels, jnp.int32)
        for epoch in range(recipe.epochs):
            if len(passes) > 1:
                x = jnp.asarray(passes[epoch % len(passes)], jnp.float32)
            yield Block(x, y, rows[batch_order(len(rows), batch_size, seed, epoch)], shares[epoch])

    return Training(_head(recipe), params, running, passes[0], labels, epochs)


def batch_order(images: int, batch_size: int, seed: int, epoch: int) -> Int[np.ndarray, "steps batch"]:
    """Indices of the images in an epoch's batches, each image in at most one. They depend on the arguments alone."""
    steps = images // batch_size
    order = np.random.default_rng((seed, epoch)).permutation(images)
    return order[: steps * batch_size].reshape(steps, batch_size)


def _shares(recipe: ProbeRecipe, steps_per_epoch: int) -> Float[np.ndarray, "epochs steps"]:
    """The learning rate at each step, as a share of the highest one."""
    warmup, steps = (epochs * steps_per_epoch for epochs in (recipe.warmup_epochs, recipe.epochs))
    now = np.arange(steps).reshape(recipe.epochs, steps_per_epoch)
    if recipe.constant_within_epochs:
        now = np.repeat(now[:, :1], steps_per_epoch, axis=1)
    if recipe.drops:
        return 0.1 ** np.sum([now >= round(drop * steps) for drop in recipe.drops], axis=0)
    cosine = 0.5 + 0.5 * np.cos(np.pi * (now - warmup) / max(steps - warmup, 1))
    shares = recipe.final_share + (1 - recipe.final_share) * cosine
    return np.where(now < warmup, now / max(warmup, 1), shares)


@functools.cache  # a function made anew would be compiled anew
def _head(recipe: ProbeRecipe) -> Head:
    options = {"sgd": {"nesterov": recipe.nesterov}, "adamw": {"exempt": ()}}.get(recipe.optimizer, {})
    return Head(
        functools.partial(_logits, recipe.scaling),
        functools.partial(optim.OPTIMIZERS[recipe.optimizer], **options),
        _batch_norm if recipe.scaling == "batch_norm" else many_heads.unchanged,
    )


def _logits(
    scaling: str, params: Params, shared: Params, x: Float[Array, "batch dim"], _: Shape
) -> Float[Array, "batch classes"]:
    if scaling == "batch_norm":
        x = (x - shared["mean"]) * lax.rsqrt(shared["variance"] + BATCH_NORM_EPS)
    if scaling in LAYER_NORMS:
        mean, variance = jnp.mean(x, axis=1, keepdims=True), jnp.var(x, axis=1, keepdims=True)
        x = (x - mean) * lax.rsqrt(variance + LAYER_NORM_EPS) * params["norm_scale"] + params["norm_bias"]
    if scaling == "unit_layer_norm":
        x = normalize(x)
    # highest: TPUs would multiply in bfloat16.
    return jnp.matmul(x, params["kernel"], precision="highest") + params["bias"]


def _batch_norm(running: Params, x: Float[Array, "batch dim"]) -> tuple[Params, Params]:
    """(statistics of the batch, running ones)"""
    mean, variance = jnp.mean(x, axis=0), jnp.var(x, axis=0)
    unbiased = {"mean": mean, "variance": variance * len(x) / max(len(x) - 1, 1)}
    return {"mean": mean, "variance": variance}, optim.ema(running, unbiased, RUNNING)

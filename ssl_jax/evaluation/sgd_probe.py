"""Linear probes trained step by step, as papers do: a whole grid of learning rates and weight decays at once."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, Integer

from ssl_jax import optim
from ssl_jax.evaluation._checks import check_labeled, check_same_dim
from ssl_jax.evaluation.labels import draw_labels
from ssl_jax.evaluation.probe_recipes import ProbeRecipe
from ssl_jax.ops import normalize

MOMENTUM, INIT_STD = 0.9, 0.01  # of every recipe; biases start at 0
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


class Heads(NamedTuple):
    """Heads trained side by side, with the state of their training.

    params, opt_state: leaves [heads, ...].
    mean, variance: running statistics of the features, which all heads share.
    step: number of steps done.
    """

    params: dict[str, Array]
    opt_state: optax.OptState
    mean: Float[Array, "dim"]
    variance: Float[Array, "dim"]
    step: Int[Array, ""]


def sgd_probe(
    train_features: Float[np.ndarray, "train dim"] | Float[np.ndarray, "passes train dim"],
    train_labels: Integer[np.ndarray, "train"],
    test_features: Float[np.ndarray, "test dim"],
    test_labels: Integer[np.ndarray, "test"],
    *,
    num_classes: int,
    recipe: ProbeRecipe,
    seed: int = 0,
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

    Raises: ValueError for negative labels, features that are not finite, or if all heads have diverged.
    Source: see each recipe; many heads at once as in DINOv2's code (Oquab et al. 2023, arXiv:2304.07193, B.3).
    """
    passes = train_features if train_features.ndim == 3 else train_features[None]
    if len(passes) == 0:
        raise ValueError(
            f"train features {train_features.shape} have no pass; give [train, dim] or [passes, train, dim]"
        )
    for features in passes:
        check_labeled("train", features, train_labels, num_classes)
    check_labeled("test", test_features, test_labels, num_classes)
    check_same_dim(passes[0], test_features)

    grid = recipe.grid
    best, held_out_accuracy = 0, None
    if len(grid) > 1:
        found = search(passes, train_labels, num_classes=num_classes, recipe=recipe, seed=seed)
        best = found.best
        held_out_accuracy = found.accuracies.reshape(len(recipe.lrs), len(recipe.weight_decays))

    lr, weight_decay = grid[best]
    heads = train_heads(passes, train_labels, grid[best : best + 1], num_classes=num_classes, recipe=recipe, seed=seed)
    if not all(np.isfinite(leaf).all() for leaf in heads.params.values()):
        raise ValueError(f"the head of lr {lr}, weight decay {weight_decay} has diverged; give a recipe of lower lrs")
    test = (jnp.asarray(test_features[rows]) for rows in _chunks(len(test_features)))
    predictions = np.concatenate([np.argmax(_logits(heads, x, recipe=recipe)[0], axis=1) for x in test])
    batch_size = min(recipe.batch_size, len(train_labels))
    return SGDProbe(
        accuracy=100.0 * float(np.mean(predictions == test_labels)),
        predictions=predictions.astype(np.int32),
        lr=lr,
        weight_decay=weight_decay,
        peak_lr=lr * batch_size / 256,
        batch_size=batch_size,
        steps=int(heads.step),
        held_out=held_out_accuracy,
    )


class Search(NamedTuple):
    """Results on held-out images for each head of a recipe's grid: top-1 in percent (NaN if the head has diverged) and
    mean cross entropy."""

    accuracies: Float[np.ndarray, "heads"]
    losses: Float[np.ndarray, "heads"]

    def rank(self, head: int) -> tuple[float, float]:
        """Sorts heads: the greater, the better."""
        finite = bool(np.isfinite(self.losses[head]))
        return (float(self.accuracies[head]), -float(self.losses[head])) if finite else (-1.0, 0.0)

    @property
    def best(self) -> int:
        return max(range(len(self.losses)), key=self.rank)


def search(
    passes: Float[np.ndarray, "passes train dim"],
    labels: Integer[np.ndarray, "train"],
    *,
    num_classes: int,
    recipe: ProbeRecipe,
    seed: int = 0,
) -> Search:
    """Trains each head of the recipe's grid on four fifths of each class's images, and scores it on the rest."""
    index, held_out = draw_labels(labels, num_classes, None, seed)
    fitted, held_out = index[~held_out], index[held_out]
    heads = train_heads(
        passes[:, fitted], labels[fitted], recipe.grid, num_classes=num_classes, recipe=recipe, seed=seed
    )
    hits, losses = _score(heads, passes[0][held_out], labels[held_out], recipe)
    return Search(100.0 * np.where(np.isfinite(losses), hits, np.nan), losses)


def train_heads(
    passes: Float[np.ndarray, "passes train dim"],
    labels: Integer[np.ndarray, "train"],
    grid: list[tuple[float, float]],
    *,
    num_classes: int,
    recipe: ProbeRecipe,
    seed: int = 0,
) -> Heads:
    """Trains a head for each (lr, weight decay) of the grid: from the same initial weights, on the same batches.

    lr is stated for a batch of 256 images. The last batch of an epoch is left out if it is not full.
    """
    images, dim = passes.shape[1:]
    batch_size = min(recipe.batch_size, images)
    kernel = INIT_STD * jax.random.normal(jax.random.key(seed), (dim, num_classes))
    params = {"kernel": kernel, "bias": jnp.zeros(num_classes)}
    if recipe.scaling in LAYER_NORMS:
        params |= {"norm_scale": jnp.ones(dim), "norm_bias": jnp.zeros(dim)}
    params = jax.tree.map(lambda leaf: jnp.tile(leaf, (len(grid), *(1,) * leaf.ndim)), params)
    opt_state = jax.vmap(_optimizer(recipe, 0.0, 0.0, 1).init)(params)
    heads = Heads(params, opt_state, jnp.zeros(dim), jnp.ones(dim), jnp.int32(0))
    peak_lrs, weight_decays = (jnp.asarray(column, jnp.float32) for column in zip(*grid, strict=True))
    peak_lrs *= batch_size / 256
    x, y = jnp.asarray(passes[0], jnp.float32), jnp.asarray(labels, jnp.int32)
    for epoch in range(recipe.epochs):
        if len(passes) > 1:
            x = jnp.asarray(passes[epoch % len(passes)], jnp.float32)
        order = batch_order(images, batch_size, seed, epoch)
        heads = _train_epoch(heads, x, y, order, peak_lrs, weight_decays, recipe=recipe)
    return heads


def batch_order(images: int, batch_size: int, seed: int, epoch: int) -> Int[np.ndarray, "steps batch"]:
    """Indices of the images in an epoch's batches, each image in at most one. They depend on the arguments alone."""
    steps = images // batch_size
    order = np.random.default_rng((seed, epoch)).permutation(images)
    return order[: steps * batch_size].reshape(steps, batch_size)


@functools.partial(jax.jit, static_argnames="recipe")
def _train_epoch(
    heads: Heads,
    features: Float[Array, "train dim"],
    labels: Int[Array, "train"],
    order: Int[Array, "steps batch"],
    peak_lrs: Float[Array, "heads"],
    weight_decays: Float[Array, "heads"],
    *,
    recipe: ProbeRecipe,
) -> Heads:
    def step(heads, rows):
        x, y, mean, variance = features[rows], labels[rows], heads.mean, heads.variance
        if recipe.scaling == "batch_norm":
            batch_mean, batch_variance = jnp.mean(x, axis=0), jnp.var(x, axis=0)
            x = _standardize(x, batch_mean, batch_variance)
            unbiased = batch_variance * len(rows) / max(len(rows) - 1, 1)
            mean, variance = optim.ema((mean, variance), (batch_mean, unbiased), RUNNING)

        def loss(params):
            return optax.softmax_cross_entropy_with_integer_labels(_classify(params, x, recipe), y).mean()

        def update(params, opt_state, peak_lr, weight_decay):
            tx = _optimizer(recipe, peak_lr, weight_decay, len(order))
            updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
            moved: Any = optax.apply_updates(params, updates)
            return moved, opt_state

        params, opt_state = jax.vmap(update)(heads.params, heads.opt_state, peak_lrs, weight_decays)
        return Heads(params, opt_state, mean, variance, heads.step + 1), None

    return lax.scan(step, heads, order)[0]


def _optimizer(
    recipe: ProbeRecipe, peak_lr: float | Array, weight_decay: float | Array, steps_per_epoch: int
) -> optax.GradientTransformation:
    lr = functools.partial(_lr, recipe, peak_lr, steps_per_epoch)
    if recipe.optimizer == "adamw":
        return optax.adamw(lr, weight_decay=weight_decay)
    if recipe.optimizer == "sgd":
        return optim.sgd(lr, weight_decay=lambda _: weight_decay, momentum=MOMENTUM, nesterov=recipe.nesterov)
    adapted = optim.lars if recipe.optimizer == "lars" else optim.larc
    return adapted(lr, weight_decay=lambda _: weight_decay, momentum=MOMENTUM)


def _lr(recipe: ProbeRecipe, peak_lr: float | Array, steps_per_epoch: int, step: Any) -> Any:
    steps = recipe.epochs * steps_per_epoch
    now = step // steps_per_epoch * steps_per_epoch if recipe.constant_within_epochs else step
    if recipe.drops:
        return peak_lr * 0.1 ** sum(jnp.float32(now >= round(drop * steps)) for drop in recipe.drops)
    warmup_steps = recipe.warmup_epochs * steps_per_epoch
    share = optim.warmup_cosine(1.0, warmup_steps=warmup_steps, steps=steps, final_lr=recipe.final_share)
    return peak_lr * share(now)


def _classify(
    params: dict[str, Float[Array, "..."]], x: Float[Array, "batch dim"], recipe: ProbeRecipe
) -> Float[Array, "batch classes"]:
    """One head's logits."""
    if recipe.scaling in LAYER_NORMS:
        mean, variance = jnp.mean(x, axis=1, keepdims=True), jnp.var(x, axis=1, keepdims=True)
        x = (x - mean) * lax.rsqrt(variance + LAYER_NORM_EPS) * params["norm_scale"] + params["norm_bias"]
    if recipe.scaling == "unit_layer_norm":
        x = normalize(x)
    # highest: TPUs would multiply in bfloat16.
    return jnp.matmul(x, params["kernel"], precision="highest") + params["bias"]


def _standardize(x: Array, mean: Array, variance: Array) -> Array:
    return (x - mean) * lax.rsqrt(variance + BATCH_NORM_EPS)


@functools.partial(jax.jit, static_argnames="recipe")
def _logits(heads: Heads, x: Float[Array, "rows dim"], *, recipe: ProbeRecipe) -> Float[Array, "heads rows classes"]:
    if recipe.scaling == "batch_norm":
        x = _standardize(x, heads.mean, heads.variance)
    return jax.vmap(lambda params: _classify(params, x, recipe))(heads.params)


def _score(
    heads: Heads,
    features: Float[np.ndarray, "images dim"],
    labels: Integer[np.ndarray, "images"],
    recipe: ProbeRecipe,
) -> tuple[Float[np.ndarray, "heads"], Float[np.ndarray, "heads"]]:
    """(share of the images that each head predicts correctly, its mean cross entropy)"""
    hits: Any = np.float64(0)
    losses: Any = np.float64(0)
    for rows in _chunks(len(features)):
        found = _sums(_logits(heads, jnp.asarray(features[rows]), recipe=recipe), jnp.asarray(labels[rows]))
        hits, losses = hits + np.asarray(found[0], np.float64), losses + np.asarray(found[1], np.float64)
    return hits / len(features), losses / len(features)


@jax.jit
def _sums(
    logits: Float[Array, "heads rows classes"], labels: Int[Array, "rows"]
) -> tuple[Int[Array, "heads"], Float[Array, "heads"]]:
    """(hits, sum of the cross entropies) of each head"""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.broadcast_to(labels, logits.shape[:2]))
    return jnp.sum(jnp.argmax(logits, axis=2) == labels, axis=1), jnp.sum(losses, axis=1)


def _chunks(rows: int) -> list[slice]:
    return [slice(start, start + ROWS) for start in range(0, rows, ROWS)]

"""Trains heads on frozen features by gradient descent, side by side at several learning rates.

The features stay on the host. The heads of all rates see the same batches, so one pass over the features serves them
all. The best rate on held-out labels is chosen.
"""

import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Integer, Num

WARMUP = 0.05  # of the steps
WEIGHT_DECAY = 0.05  # of matrices, not of biases
# Features that are averaged at a time. The bytes are those of float32 copies, as rows may be float16.
CHUNK_BYTES = 2**26

Params = dict[str, Array]
Shape = tuple[int, ...]
# (params, arrays that are not trained, inputs, shape of the targets) -> logits [*shape, classes]
Logits = Callable[[Params, Params, Num[Array, "batch ..."], Shape], Float[Array, "*shape classes"]]

optimizer = optax.chain(
    optax.scale_by_adam(),
    optax.add_decayed_weights(WEIGHT_DECAY, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)),
)


def choose_and_fit(
    logits: Logits,
    params: Params,
    fixed: Params,
    inputs: Num[np.ndarray, "images *map dim"],
    targets: Integer[np.ndarray, "images *places"],
    fitted: Int[np.ndarray, "fitted"],
    held_out: Int[np.ndarray, "held_out"],
    *,
    ignore: int,
    learning_rates: Sequence[float],
    steps: int,
    batch_size: int,
    seed: int,
) -> tuple[Params, float]:
    """(params trained on the rows `fitted` and `held_out`, their learning rate).

    First a head is trained on the rows `fitted` for each learning rate. The rate with the least cross entropy on the
    rows `held_out` is chosen.

    Args:
      logits: a function defined at module level, so that it is compiled once.
      params: initial parameters, the same for all heads.
      fixed: arrays that `logits` needs and that are not trained.
      inputs, targets: only one batch of rows at a time is on the device.
      ignore: the target that is not counted.
      learning_rates: of AdamW, at their peak: after a linear warm-up and before a cosine to 0.
      batch_size: images per batch; all of them if there are fewer.
      seed: of the order of the batches.
    Raises: ValueError for numbers out of range, and if no learning rate gives a finite cross entropy.
    """
    if not learning_rates or min(learning_rates) <= 0:
        raise ValueError(f"learning_rates must be above 0, one at least, got {tuple(learning_rates)}")
    if steps < 1 or batch_size < 1:
        raise ValueError(f"steps and batch_size must be at least 1, got {steps} and {batch_size}")
    train = functools.partial(
        _train, logits, params, fixed, inputs, targets, ignore=ignore, steps=steps, batch_size=batch_size, seed=seed
    )
    heads, total = train(fitted, learning_rates), np.zeros(len(learning_rates))
    for start in range(0, len(held_out), batch_size):
        rows = held_out[start : start + batch_size]
        batch = fill(inputs[rows], batch_size, 0), fill(targets[rows], batch_size, ignore)
        total += np.asarray(_sums(logits, heads, fixed, *batch, ignore)[0], np.float64)
    if not np.isfinite(total).any():
        raise ValueError(f"training diverged at each of the learning_rates {tuple(learning_rates)}; give smaller ones")
    chosen = float(learning_rates[int(np.nanargmin(total))])
    heads = train(np.concatenate([fitted, held_out]), [chosen])
    return jax.tree.map(lambda p: p[0], heads), chosen


def predict(
    logits: Logits,
    params: Params,
    fixed: Params,
    inputs: Num[np.ndarray, "images *map dim"],
    places: Shape,
    *,
    batch_size: int,
) -> Iterator[Int[np.ndarray, "batch *places"]]:
    """Predicted classes of the inputs, batch by batch. places: the shape of an image's targets."""
    for start in range(0, len(inputs), batch_size):
        x = inputs[start : start + batch_size]
        yield np.asarray(_argmax(logits, params, fixed, fill(x, batch_size, 0), (batch_size, *places)))[: len(x)]


def standardization(inputs: Float[np.ndarray, "images *map dim"]) -> Params:
    """{"mean", "scale"} [dim] with which `standardize` takes `inputs` to mean 0 and standard deviation 1; a constant
    column becomes 0."""
    dim = inputs.shape[-1]
    rows = max(CHUNK_BYTES // (4 * inputs[0].size), 1)
    chunks = [slice(start, start + rows) for start in range(0, len(inputs), rows)]

    def average(of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        sums = [of(inputs[c].astype(np.float32)).reshape(-1, dim).sum(axis=0, dtype=np.float64) for c in chunks]
        return np.sum(sums, axis=0) / (inputs.size // dim)

    mean = average(lambda x: x)
    std = np.sqrt(average(lambda x: np.square(x - mean.astype(np.float32))))
    scale = np.divide(1, std, out=np.zeros_like(std), where=std > 0)
    return {"mean": jnp.asarray(mean, jnp.float32), "scale": jnp.asarray(scale, jnp.float32)}


def standardize(fixed: Params, inputs: Float[Array, "batch *map dim"]) -> Float[Array, "batch *map dim"]:
    return (inputs.astype(jnp.float32) - fixed["mean"]) * fixed["scale"]


def fill(rows: np.ndarray, batch_size: int, value: int) -> np.ndarray:
    """`rows`, padded to `batch_size` with rows of `value`."""
    return np.pad(rows, [(0, batch_size - len(rows))] + [(0, 0)] * (rows.ndim - 1), constant_values=value)


def _train(
    logits: Logits,
    params: Params,
    fixed: Params,
    inputs: np.ndarray,
    targets: np.ndarray,
    rows: np.ndarray,
    learning_rates: Sequence[float],
    *,
    ignore: int,
    steps: int,
    batch_size: int,
    seed: int,
) -> Params:
    """Params of a head for each learning rate, [rates, ...]."""
    rates = np.asarray(learning_rates, np.float32)
    heads = jax.tree.map(lambda p: jnp.tile(p, (len(rates), *(1,) * p.ndim)), params)
    moments = _first_moments(heads)
    rng, waiting = np.random.default_rng(seed), rows[:0]
    warmup = max(round(WARMUP * steps), 1)
    for step in range(steps):
        while len(waiting) < min(batch_size, len(rows)):  # epochs run into each other
            waiting = np.concatenate([waiting, rng.permutation(rows)])
        batch, waiting = waiting[:batch_size], waiting[batch_size:]
        share = min((step + 1) / warmup, 0.5 + 0.5 * np.cos(np.pi * step / steps))
        x, y = fill(inputs[batch], batch_size, 0), fill(targets[batch], batch_size, ignore)
        heads, moments = _step(logits, heads, moments, fixed, x, y, ignore, rates * np.float32(share))
    return heads


_first_moments = jax.jit(jax.vmap(optimizer.init))


@functools.partial(jax.jit, static_argnames="logits", donate_argnames=("heads", "moments"))
def _step(logits, heads, moments, fixed, inputs, targets, ignore, rates):
    def loss(heads):
        # The heads share no weights, so the gradient of the sum holds the gradient of each head.
        sums, count = _sums(logits, heads, fixed, inputs, targets, ignore)
        return jnp.sum(sums) / jnp.maximum(count, 1)

    directions, moments = jax.vmap(optimizer.update)(jax.grad(loss)(heads), moments, heads)
    step = jax.vmap(lambda rate, head, direction: jax.tree.map(lambda p, d: p - rate * d, head, direction))
    return step(rates, heads, directions), moments


@functools.partial(jax.jit, static_argnames="logits")
def _sums(logits, heads, fixed, inputs, targets, ignore):
    """(the sum of the cross entropies of each head, the number of targets that count)"""
    counts = targets != ignore
    classes = jnp.where(counts, targets, 0).astype(jnp.int32)

    def of_head(params):
        made = logits(params, fixed, inputs, targets.shape)
        return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(made, classes) * counts)

    return jax.vmap(of_head)(heads), jnp.sum(counts)


@functools.partial(jax.jit, static_argnames=("logits", "shape"))
def _argmax(logits, params, fixed, inputs, shape):
    return jnp.argmax(logits(params, fixed, inputs, shape), axis=-1)

"""Chooses a learning rate for heads on frozen features, and trains one with it.

The features stay on the host except for one batch.
"""

from collections.abc import Callable, Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer, Num
from tqdm import tqdm

from ssl_jax import optim
from ssl_jax.evaluation.many_heads import Block, Head, Heads, Logits, Params, Training

WARMUP = 0.05  # of the steps
WEIGHT_DECAY = 0.05  # of matrices, not of biases
# Features that are averaged at a time. The bytes are those of float32 copies, as rows may be float16.
CHUNK_BYTES = 2**26


def training(
    logits: Logits,
    params: Params,
    fixed: Params,
    inputs: Num[np.ndarray, "images *map dim"],
    targets: Integer[np.ndarray, "images *places"],
    *,
    steps: int,
    batch_size: int,
    seed: int,
) -> Training:
    """Training with AdamW, after a linear warm-up with a cosine to 0. Epochs run into each other.

    Args:
      logits: a function defined at module level, so that it is compiled once.
      params: initial parameters, the same for all heads.
      fixed: arrays that `logits` needs and that are not trained.
      inputs, targets: only one batch of rows at a time is on the device. A target that is no class does not count.
      batch_size: images per batch; all of them if there are fewer.
      seed: of the order of the batches.
    Raises: ValueError for numbers out of range.
    """
    check_steps(steps, batch_size)
    warmup = max(round(WARMUP * steps), 1)

    def batches(rows: Int[np.ndarray, "rows"]) -> Iterator[Block]:
        rng, waiting, count = np.random.default_rng(seed), rows[:0], min(batch_size, len(rows))
        for step in tqdm(range(steps), "training", unit=" steps", delay=5, leave=False):
            while len(waiting) < count:
                waiting = np.concatenate([waiting, rng.permutation(rows)])
            batch, waiting = waiting[:count], waiting[count:]
            share = min((step + 1) / warmup, 0.5 + 0.5 * np.cos(np.pi * step / steps))
            yield Block(inputs[batch], targets[batch], np.arange(count)[None], np.array([share]))

    return Training(Head(logits, optim.adamw), params, fixed, inputs, targets, batches)


def choose_and_fit(
    training: Training,
    learning_rates: Sequence[float],
    fitted: Int[np.ndarray, "fitted"],
    held_out: Int[np.ndarray, "held_out"],
    *,
    batch_size: int,
) -> tuple[Heads, float]:
    """(a head trained on the rows `fitted` and `held_out`, its learning rate at the peak).

    First a head is trained on the rows `fitted` for each learning rate. The rate with the least cross entropy on the
    rows `held_out` is chosen. batch_size: rows that are scored at a time.

    Raises: ValueError for rates out of range, and if none gives a finite cross entropy.
    """
    check_rates(learning_rates)
    heads = training.train(fitted, [(rate, WEIGHT_DECAY) for rate in learning_rates])
    losses = training.score(heads, held_out, batch_size=batch_size).losses
    if not np.isfinite(losses).any():
        raise ValueError(f"training diverged at each of the learning_rates {tuple(learning_rates)}; give smaller ones")
    chosen = float(learning_rates[int(np.nanargmin(losses))])
    return training.train(np.concatenate([fitted, held_out]), [(chosen, WEIGHT_DECAY)]), chosen


def check_steps(steps: int, batch_size: int) -> None:
    """Raises: ValueError for numbers out of range."""
    if steps < 1 or batch_size < 1:
        raise ValueError(f"steps and batch_size must be at least 1, got {steps} and {batch_size}")


def check_rates(learning_rates: Sequence[float]) -> None:
    """Raises: ValueError for rates out of range."""
    if not learning_rates or min(learning_rates) <= 0:
        raise ValueError(f"learning_rates must be one or more numbers above 0, got {tuple(learning_rates)}")


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

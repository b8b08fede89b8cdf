"""Trains heads on frozen features side by side: one for each learning rate and weight decay of a grid.

All heads see the same batches, so one pass over the features serves them all. A protocol says what a head is (`Head`)
and which batches it is trained on (`Block`).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, Integer, Num

Params = dict[str, Array]
Shape = tuple[int, ...]
Inputs = Num[Array, "batch ..."]
# (params, shared, inputs, shape of the targets) -> logits
Logits = Callable[[Params, Params, Inputs, Shape], Float[Array, "*shape classes"]]
Grid = Sequence[tuple[float, float]]  # (learning rate at its peak, weight decay) of each head


def unchanged(shared: Params, inputs: Inputs) -> tuple[Params, Params]:
    return shared, shared


@dataclasses.dataclass(frozen=True)
class Head:
    """A kind of head, and how it learns. Equal ones share their compiled programs.

    optimizer: as those of `optim.OPTIMIZERS`, of a learning rate and a `weight_decay`.
    observe: (shared, a batch of inputs to train on) -> (what `logits` is given for this batch, the new `shared`).
    """

    logits: Logits
    optimizer: Callable[..., optax.GradientTransformation]
    observe: Callable[[Params, Inputs], tuple[Params, Params]] = unchanged


class Block(NamedTuple):
    """Some steps of a training, whose batches are rows of the same arrays.

    targets: one that is not in 0 .. classes - 1 does not count.
    order: rows of each step's batch.
    shares: of the highest learning rate, at each step.
    """

    inputs: Num[Array | np.ndarray, "rows ..."]
    targets: Integer[Array | np.ndarray, "rows *places"]
    order: Integer[np.ndarray, "steps batch"]
    shares: Float[np.ndarray, "steps"]


class Heads(NamedTuple):
    """Heads side by side, with the state of their training.

    params, opt_state: leaves [heads, ...].
    shared: arrays that `logits` needs and the optimizer does not train. All heads have the same.
    """

    params: Params
    opt_state: optax.OptState
    shared: Params


class Scores(NamedTuple):
    """Of each head: top-1 in percent, NaN if the head has diverged, and mean cross entropy."""

    accuracies: Float[np.ndarray, "heads"]
    losses: Float[np.ndarray, "heads"]


@dataclasses.dataclass(frozen=True)
class Training:
    """How a protocol trains its heads, and on what.

    params: initial parameters, the same for all heads.
    shared: initial arrays of `Heads.shared`.
    inputs, targets: of all images; heads are scored on some of their rows.
    blocks: rows to train on -> the blocks of a training.
    """

    head: Head
    params: Params
    shared: Params
    inputs: Num[np.ndarray, "images ..."]
    targets: Integer[np.ndarray, "images *places"]
    blocks: Callable[[Int[np.ndarray, "rows"]], Iterable[Block]]

    def train(self, rows: Int[np.ndarray, "rows"], grid: Grid) -> Heads:
        """Trains a head for each entry of the grid, all on the same batches."""
        lrs, weight_decays = np.asarray(grid, np.float32).T
        heads = _start(self.head, self.params, self.shared, len(grid))
        for block in self.blocks(rows):
            heads = _train(self.head, heads, block, lrs, weight_decays)
        return heads

    def score(self, heads: Heads, rows: Int[np.ndarray, "rows"], *, batch_size: int) -> Scores:
        total: Any = np.zeros((3, 1))
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            sums = _sums_of_heads(self.head, heads, self.inputs[batch], self.targets[batch])
            total = total + np.asarray(sums, np.float64)
        loss, hits = total[:2] / np.maximum(total[2], 1)
        return Scores(100.0 * np.where(np.isfinite(loss), hits, np.nan), loss)

    def predict(
        self, heads: Heads, inputs: Num[np.ndarray, "images ..."], places: Shape = (), *, batch_size: int
    ) -> Iterator[Int[np.ndarray, "batch *places"]]:
        """Classes that the first head predicts, batch by batch. places: the shape of an image's targets."""
        for start in range(0, len(inputs), batch_size):
            x = inputs[start : start + batch_size]
            yield np.asarray(_predict(self.head, heads, x, (len(x), *places)))


def _optimizer(head: Head, weight_decay: float | Array) -> optax.GradientTransformation:
    """At a learning rate of 1. A step is its update times the rate, so that a program holds for all rates."""
    return head.optimizer(lambda _: 1.0, weight_decay=lambda _: weight_decay)


@functools.partial(jax.jit, static_argnames=("head", "count"))
def _start(head: Head, params: Params, shared: Params, count: int) -> Heads:
    tiled = jax.tree.map(lambda p: jnp.tile(p, (count, *(1,) * p.ndim)), params)
    return Heads(tiled, jax.vmap(_optimizer(head, 0.0).init)(tiled), shared)


@functools.partial(jax.jit, static_argnames="head")
def _train(
    head: Head, heads: Heads, block: Block, lrs: Float[Array, "heads"], weight_decays: Float[Array, "heads"]
) -> Heads:
    def step(heads, of_step):
        rows, share = of_step
        x, y = (jnp.asarray(of_block)[rows] for of_block in (block.inputs, block.targets))
        shared, kept = head.observe(heads.shared, x)

        def loss(params):
            total, _, count = _sums(head, params, shared, x, y)
            return total / jnp.maximum(count, 1)

        def update(params, opt_state, lr, weight_decay):
            updates, opt_state = _optimizer(head, weight_decay).update(jax.grad(loss)(params), opt_state, params)
            return jax.tree.map(lambda p, u: p + share * lr * u, params, updates), opt_state

        params, opt_state = jax.vmap(update)(heads.params, heads.opt_state, lrs, weight_decays)
        return Heads(params, opt_state, kept), None

    return lax.scan(step, heads, (block.order, block.shares))[0]


def _sums(head: Head, params: Params, shared: Params, x: Inputs, y: Integer[Array, "batch *places"]) -> Any:
    """(sum of the cross entropies, hits) of one head, and how many targets count."""
    logits, y = head.logits(params, shared, x, y.shape), y.astype(jnp.int32)
    counts = (y >= 0) & (y < logits.shape[-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(counts, y, 0)) * counts
    return jnp.sum(losses), jnp.sum(jnp.argmax(logits, axis=-1) == y, where=counts), jnp.sum(counts)


@functools.partial(jax.jit, static_argnames="head")
def _sums_of_heads(head, heads, x, y):
    return jax.vmap(lambda params: _sums(head, params, heads.shared, x, y))(heads.params)


@functools.partial(jax.jit, static_argnames=("head", "shape"))
def _predict(head, heads, x, shape):
    return jnp.argmax(head.logits(jax.tree.map(lambda p: p[0], heads.params), heads.shared, x, shape), axis=-1)

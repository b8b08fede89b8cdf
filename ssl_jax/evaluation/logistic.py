"""Multinomial logistic regression with an L2 penalty: many draws of images and many strengths of the penalty at once.

All strengths of a draw share its features, so their logits are one wide matmul.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int

# Images whose logits are computed at a time. The number of rows given to `fit` must be a multiple of CHUNK.
CHUNK = 1024
# The same of a single strength, if it divides the rows: with fewer, the products take a CPU twice as long.
CHUNK_OF_ONE = 4096
# The label of rows that only pad a chunk.
FILLER = -1


class Fit(NamedTuple):
    """weights: the last one of each class is its intercept.
    gradient_norm: a measure of the distance to the minimum, see `fit`.
    held_out_loss: sum of the cross entropies of the held-out images.
    """

    weights: Float[Array, "draws strengths classes dim"]
    gradient_norm: Float[Array, "draws strengths"]
    held_out_loss: Float[Array, "draws strengths"]


class _State(NamedTuple):
    """State of all minimizations: arrays [fits, ...], except for the number of the iteration."""

    iteration: Array
    u: Array
    value: Array
    gradient: Array
    direction: Array
    step: Array
    memory: optax.ScaleByLBFGSState
    held_out_loss: Array


@jax.jit
def fit(
    x: Float[Array, "draws rows dim"],
    y: Int[Array, "draws rows"],
    held_out: Bool[Array, "draws rows"],
    variances: Float[Array, "draws dim"],
    strengths: Float[Array, "draws strengths"],
    start: Float[Array, "draws strengths classes dim"],
    tolerance: float | Float[Array, ""],
    max_iterations: int | Int[Array, ""],
) -> Fit:
    """Minimizes the mean cross entropy of the images not held out + strength / (2 images) * sum of squared weights.

    Runs L-BFGS for all draws and strengths side by side, each with its own step size, one evaluation per iteration. It
    works on weights scaled by the curvature, about variance / 10 + strength / images (p (1 - p) of the softmax is at
    most 1/4). Without this scaling, correlated features would take some ten times the iterations. The gradient norm is
    taken with respect to the scaled weights; its square estimates how far the value is from its minimum.

    Args:
      x: features whose columns are nearly uncorrelated within a draw; the last column is all ones.
      y: in 0 .. classes - 1, or FILLER.
      held_out: images that are only used for `held_out_loss`.
      variances: of the columns of x; that of the ones is taken to be 1.
      strengths: > 0; the intercepts have no penalty.
      start: initial weights.
      tolerance: gradient norm below which a fit is done.
      max_iterations: the iteration after which all fits stop.
    """
    fitted = (y != FILLER) & ~held_out
    images = jnp.sum(fitted, axis=1)[:, None, None, None]
    intercept = jnp.arange(x.shape[-1]) == x.shape[-1] - 1
    penalty = jnp.where(intercept, 0.0, strengths[..., None, None]) / images
    scale = lax.rsqrt(jnp.where(intercept, 1.0, variances)[:, None, None] / 10 + penalty)
    chunk = CHUNK_OF_ONE if strengths.shape[1] == 1 and x.shape[1] % CHUNK_OF_ONE == 0 else CHUNK
    chunks = tuple(a.reshape(-1, chunk, *a.shape[2:]) for a in (x, y, fitted, held_out))
    lbfgs: Any = optax.scale_by_lbfgs()

    def objective(u):
        weights = scale * u.reshape(start.shape)
        loss, held_out_loss, gradient = _cross_entropy(weights, *chunks)
        value = loss / images[:, :, 0, 0] + jnp.sum(penalty * weights**2, axis=(2, 3)) / 2
        gradient = scale * (gradient / images + penalty * weights)
        return value.ravel(), gradient.reshape(u.shape), held_out_loss.ravel()

    def unfinished(state):
        descends = jnp.sum(state.direction * state.gradient, axis=1) < 0
        # If the direction does not descend, or the step is this small, float32 resolves no further progress.
        progresses = (jnp.linalg.norm(state.gradient, axis=1) > tolerance) & descends & (state.step > 1e-3)
        return (state.iteration == 0) | progresses

    def iterate(state):
        u = state.u + state.step[:, None] * state.direction
        value, gradient, held_out_loss = objective(u)
        slope = jnp.sum(state.direction * state.gradient, axis=1)
        # Armijo's condition, with a margin for float32's rounding. The curvature condition holds wherever the loss is
        # convex.
        lower = value <= state.value + 1e-4 * state.step * slope + 2e-6 * jnp.abs(value)
        direction, memory = jax.vmap(lbfgs.update)(gradient, state.memory, u)
        moved = _State(state.iteration, u, value, gradient, -direction, jnp.ones_like(value), memory, held_out_loss)
        stayed = state._replace(step=state.step / 2)
        active = unfinished(state)
        state = _where(active & lower, moved, _where(active, stayed, state))
        return state._replace(iteration=state.iteration + 1)

    u = (start / scale).reshape(strengths.size, -1)
    none, infinite = jnp.zeros_like(u), jnp.full(len(u), jnp.inf)
    # The first iteration only evaluates the start.
    state = _State(jnp.int32(0), u, infinite, none, none, jnp.ones(len(u)), jax.vmap(lbfgs.init)(u), jnp.zeros(len(u)))
    state = lax.while_loop(lambda s: jnp.any(unfinished(s)) & (s.iteration < max_iterations), iterate, state)
    gradient_norm = jnp.linalg.norm(state.gradient, axis=1)
    return Fit(
        weights=scale * state.u.reshape(start.shape),
        gradient_norm=gradient_norm.reshape(strengths.shape),
        held_out_loss=state.held_out_loss.reshape(strengths.shape),
    )


def _where(condition: Bool[Array, "fits"], yes: _State, no: _State) -> _State:
    """`yes` or `no` for each fit. The number of the iteration, which is common to all, is taken from `no`."""

    def choose(a, b):
        return jnp.where(condition.reshape(-1, *(1,) * (a.ndim - 1)), a, b) if a.ndim else b

    return jax.tree.map(choose, yes, no)


def _cross_entropy(
    weights: Float[Array, "draws strengths classes dim"],
    x: Float[Array, "chunks rows dim"],
    y: Int[Array, "chunks rows"],
    fitted: Bool[Array, "chunks rows"],
    held_out: Bool[Array, "chunks rows"],
) -> tuple[Float[Array, "draws strengths"], Float[Array, "draws strengths"], Array]:
    """(sum of the cross entropies of the fitted images, the same of the held-out images, gradient of the first).

    It goes through one chunk of one draw at a time. A matmul batched over draws would transpose x first, which takes a
    CPU longer than the multiplication.
    """
    classes = jnp.arange(weights.shape[2])[:, None]

    def add_chunk(sums, chunk):
        draw, x, y, fitted, held_out = chunk
        # highest: TPUs would multiply in bfloat16.
        logits = jnp.einsum("scd,nd->scn", weights[draw], x, precision="highest")
        logits = logits - jnp.max(logits, axis=1, keepdims=True)
        exponentials = jnp.exp(logits)
        total = jnp.sum(exponentials, axis=1, keepdims=True)
        losses = jnp.log(total[:, 0]) - jnp.sum(jnp.where(classes == y, logits, 0.0), axis=1)
        residuals = (exponentials / total - (classes == y)) * fitted
        gradient = jnp.einsum("scn,nd->scd", residuals, x, precision="highest")
        terms = jnp.sum(losses * fitted, axis=1), jnp.sum(losses * held_out, axis=1), gradient
        return tuple(a.at[draw].add(term) for a, term in zip(sums, terms, strict=True)), None

    draws = jnp.repeat(jnp.arange(len(weights)), len(x) // len(weights))
    zero = jnp.zeros(weights.shape[:2])
    return lax.scan(add_chunk, (zero, zero, jnp.zeros_like(weights)), (draws, x, y, fitted, held_out))[0]

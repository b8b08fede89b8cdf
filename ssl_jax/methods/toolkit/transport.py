"""Optimal transport: labels that share all images out equally among clusters, for SeLa; and what Sinkhorn sends."""

# pyright: reportUnknownMemberType=false

import functools
import math
from typing import cast

import jax
import jax.numpy as jnp
from jax import lax, nn
from jaxtyping import Array, Bool, Float, Int

from ssl_jax.methods.toolkit.kmeans import in_blocks
from ssl_jax.ops import global_logsumexp, global_sum, log_softmax, vary_like


@functools.partial(
    jax.jit, static_argnames=("temperature", "strength", "iterations", "tolerance", "block_size", "axis_name")
)
def balanced_labels(
    points: Float[Array, "points dim"],
    prototypes: Float[Array, "k dim"],
    *,
    temperature: float = 0.1,
    strength: float = 25.0,
    iterations: int = 50,
    tolerance: float = 0.1,
    bias: Float[Array, " k"] | None = None,
    valid: Bool[Array, " points"] | None = None,
    block_size: int = 4096,
    axis_name: str | None = None,
) -> tuple[Int[Array, " points"], Float[Array, " k"]]:
    """Each point's largest entry of diag(c) P^strength diag(r).

    P = softmax((points prototypes' + bias) / temperature).

    c makes the rows sum to 1, and r makes the columns sum to points / k. Both come from the iterations of Sinkhorn and
    Knopp. This is `losses.sinkhorn` of log P with epsilon = 1 / strength, but the whole of P is never in memory.

    Args:
      points: [points, dim]. prototypes: [k, dim].
      temperature: softmax temperature of P, > 0.
      strength: SeLa's lambda. The larger it is, the closer the balanced labels are to P's.
      iterations: at most so many.
      bias: [k], added to each point's scores. None: none.
      tolerance: stops after the iteration that has sum_i |c_i / c_new_i - 1| < tolerance.
      valid: [points], True for points that count. None: all count.
      block_size: number of points whose P is computed at a time. Beside the points, the largest array is
        [block_size, k].
      axis_name: mapped axis that points and valid are divided over; None if they are whole. Each iteration sends a
        maximum and a sum of each label, and the change.

    Returns: the labels, -1 where a point is not valid; and log r, with which `label` labels a new point.
    Raises: ValueError if the shapes do not agree, or iterations < 1.
    Source: Asano et al. 2019, arXiv:1911.05371, section 3 and the authors' code. The code works in float64 and looks at
      the tolerance every tenth iteration. Here logarithms are in float32, so the iterations need a bound.
    """
    if points.ndim != 2 or prototypes.ndim != 2 or points.shape[1] != prototypes.shape[1]:
        raise ValueError(f"points and prototypes must be rows of one dim, got {points.shape}, {prototypes.shape}")
    if bias is not None and bias.shape != prototypes.shape[:1]:
        raise ValueError(f"bias must be [k], got {bias.shape} for {prototypes.shape}")
    if valid is not None and valid.shape != points.shape[:1]:
        raise ValueError(f"valid must be [points], got {valid.shape} for {points.shape}")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    k = len(prototypes)
    valid = jnp.full(len(points), True) if valid is None else valid
    block_size = min(block_size, len(points))
    blocks = in_blocks(points.astype(jnp.float32), block_size)
    # The logarithm of a point's weight: 0 where it counts, -inf where it does not.
    weights = jnp.where(in_blocks(valid, block_size), 0.0, -jnp.inf)
    log_share = jnp.log(global_sum(jnp.sum(valid), axis_name)) - math.log(k)
    log_kernel = functools.partial(
        _log_kernel, prototypes=prototypes, temperature=temperature, strength=strength, bias=bias
    )

    def columns(total: Float[Array, " k"], block: tuple[Array, Array]) -> tuple[Float[Array, " k"], None]:
        points, log_c = block
        return jnp.logaddexp(total, nn.logsumexp(log_kernel(points) + log_c[:, None], axis=0)), None

    def sweep(
        carry: tuple[Array, Array], block: tuple[Array, Array, Array], log_r: Float[Array, " k"]
    ) -> tuple[tuple[Array, Array], Float[Array, " block"]]:
        # One computation of the block gives both the rows' new factors and the columns' sums under them.
        total, change = carry
        points, weight, old = block
        kernel = log_kernel(points)
        log_c = weight - nn.logsumexp(kernel + log_r, axis=1)
        change += jnp.sum(jnp.where(jnp.isneginf(weight), 0.0, jnp.abs(jnp.expm1(old - log_c))))
        return (jnp.logaddexp(total, nn.logsumexp(kernel + log_c[:, None], axis=0)), change), log_c

    nothing = vary_like(jnp.full(k, -jnp.inf), blocks)

    def of_all(total: Float[Array, " k"]) -> Float[Array, " k"]:
        return total if axis_name is None else global_logsumexp(total[None], axis_name)

    def step(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        """(iterations done, log of the columns' sums, log c, log r, change of c) after one more iteration."""
        i, total, log_c, *_ = carry
        log_r = log_share - total
        start = (nothing, vary_like(jnp.zeros(()), blocks))
        (total, change), log_c = lax.scan(functools.partial(sweep, log_r=log_r), start, (blocks, weights, log_c))
        return i + 1, of_all(total), log_c, log_r, global_sum(change, axis_name)

    def unfinished(carry: tuple[Array, ...]) -> Bool[Array, ""]:
        return (carry[0] < iterations) & (carry[-1] >= tolerance)

    total, _ = lax.scan(columns, nothing, (blocks, weights))
    *_, log_r, _ = lax.while_loop(unfinished, step, step((jnp.zeros((), jnp.int32), of_all(total), weights)))

    def largest(block: Float[Array, "block dim"]) -> Int[Array, " block"]:
        return jnp.argmax(log_kernel(block) + log_r, axis=1)

    labels = cast(Array, lax.map(largest, blocks))
    return jnp.where(valid, labels.reshape(-1)[: len(points)], -1), log_r


def label(
    points: Float[Array, "points dim"],
    prototypes: Float[Array, "k dim"],
    log_r: Float[Array, " k"],
    *,
    temperature: float,
    strength: float,
) -> Int[Array, " points"]:
    """The labels that `balanced_labels` would give these points if their weight were zero. log_r: what it returned."""
    return jnp.argmax(_log_kernel(points, prototypes, temperature, strength) + log_r, axis=1)


def _log_kernel(
    points: Float[Array, "points dim"],
    prototypes: Float[Array, "k dim"],
    temperature: float,
    strength: float,
    bias: Float[Array, " k"] | None = None,
) -> Float[Array, "points k"]:
    scores = jnp.matmul(points, prototypes.T, precision="highest")
    if bias is not None:
        scores += bias
    return strength * log_softmax(scores, temperature)


def is_time(step: Int[Array, "*steps"], times: int, steps: int, power: int) -> Bool[Array, "*steps"]:
    """Whether labels are made anew after step number `step`, from 1 on, in a run of `steps`.

    They are after (i / (times - 1))^power of the steps, for i = 0, ..., times - 1, and never twice in a step; the first
    time is step 1.
    """
    # In integers: rounding would move some of the times to the neighboring step.
    after = [max(1, -(-(i**power * steps) // (times - 1) ** power)) for i in range(times)]
    return jnp.any(jnp.asarray(step)[..., None] == jnp.array(after), axis=-1)


def sinkhorn_bytes(prototypes: int, iterations: int) -> int:
    """Bytes that `losses.sinkhorn` sends by all-reduce: each iteration needs each prototype's maximum and sum."""
    return 4 * 2 * iterations * prototypes

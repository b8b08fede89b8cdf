"""Labels that share all images out equally among clusters, by optimal transport, for SeLa."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax, nn
from jaxtyping import Array, Bool, Float, Int

from ssl_jax.losses._common import log_softmax
from ssl_jax.methods._kmeans import _blocks


@functools.partial(jax.jit, static_argnames=("temperature", "strength", "iterations", "tolerance", "block_size"))
def balanced_labels(
    points: Float[Array, "points dim"],
    prototypes: Float[Array, "k dim"],
    *,
    temperature: float = 0.1,
    strength: float = 25.0,
    iterations: int = 50,
    tolerance: float = 0.1,
    valid: Bool[Array, "points"] | None = None,
    block_size: int = 4096,
) -> tuple[Int[Array, "points"], Float[Array, "k"]]:
    """Each point's largest entry of diag(c) P^strength diag(r), with P = softmax(points prototypes' / temperature).

    c and r are those that make the rows sum to 1 and the columns to points / k, by Sinkhorn and Knopp:
    `losses.sinkhorn` of log P with epsilon = 1 / strength, but without ever holding the whole of P.

    Args:
      points: [points, dim]. prototypes: [k, dim].
      strength: SeLa's lambda: the larger, the closer the labels are to P's, among those that are balanced.
      iterations, tolerance: at most so many; no more after one that has sum_i |c_i / c_new_i - 1| < tolerance.
      valid: [points], True for those that count; by default all.
      block_size: points that P is computed of at a time: [block_size, k] is the largest array beside the points.

    Returns: the labels, -1 where not valid; and log r, with which a new point's label is that of `label`.
    Raises: ValueError if the shapes do not agree, or iterations < 1.
    Source: Asano et al. 2019, arXiv:1911.05371, section 3 and the authors' code, which works in float64 and looks at
      the tolerance every tenth iteration. In logarithms and float32 here, hence the bound on the iterations.
    """
    if points.ndim != 2 or prototypes.ndim != 2 or points.shape[1] != prototypes.shape[1]:
        raise ValueError(f"points and prototypes must be rows of one dim, got {points.shape}, {prototypes.shape}")
    if valid is not None and valid.shape != points.shape[:1]:
        raise ValueError(f"valid must be [points], got {valid.shape} for {points.shape}")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    k = len(prototypes)
    valid = jnp.full(len(points), True) if valid is None else valid
    block_size = min(block_size, len(points))
    blocks = _blocks(points.astype(jnp.float32), block_size)
    # 0 for points that count, -inf for those that do not: the logarithm of their weight.
    weights = jnp.where(_blocks(valid, block_size), 0.0, -jnp.inf)
    log_share = jnp.log(jnp.sum(valid)) - math.log(k)
    log_kernel = functools.partial(_log_kernel, prototypes=prototypes, temperature=temperature, strength=strength)

    def columns(total, block):
        points, log_c = block
        return jnp.logaddexp(total, nn.logsumexp(log_kernel(points) + log_c[:, None], axis=0)), None

    def sweep(carry, block, log_r):
        # The rows' new factors and what the columns sum to under them, of one computation of the block.
        total, change = carry
        points, weight, old = block
        kernel = log_kernel(points)
        log_c = weight - nn.logsumexp(kernel + log_r, axis=1)
        change += jnp.sum(jnp.where(jnp.isneginf(weight), 0.0, jnp.abs(jnp.expm1(old - log_c))))
        return (jnp.logaddexp(total, nn.logsumexp(kernel + log_c[:, None], axis=0)), change), log_c

    nothing = jnp.full(k, -jnp.inf)

    def step(carry):
        i, total, log_c, *_ = carry
        log_r = log_share - total
        start = (nothing, jnp.zeros(()))
        (total, change), log_c = lax.scan(functools.partial(sweep, log_r=log_r), start, (blocks, weights, log_c))
        return i + 1, total, log_c, log_r, change

    def unfinished(carry):
        return (carry[0] < iterations) & (carry[-1] >= tolerance)

    total, _ = lax.scan(columns, nothing, (blocks, weights))
    *_, log_r, _ = lax.while_loop(unfinished, step, step((jnp.zeros((), jnp.int32), total, weights)))
    labels = lax.map(lambda block: jnp.argmax(log_kernel(block) + log_r, axis=1), blocks)
    return jnp.where(valid, labels.reshape(-1)[: len(points)], -1), log_r


def label(
    points: Float[Array, "points dim"],
    prototypes: Float[Array, "k dim"],
    log_r: Float[Array, "k"],
    *,
    temperature: float,
    strength: float,
) -> Int[Array, "points"]:
    """The labels that `balanced_labels` would have given these points, had they counted as nothing."""
    return jnp.argmax(_log_kernel(points, prototypes, temperature, strength) + log_r, axis=1)


def _log_kernel(points, prototypes, temperature, strength):
    scores = jnp.matmul(points, prototypes.T, precision="highest")
    return strength * log_softmax(scores, temperature)

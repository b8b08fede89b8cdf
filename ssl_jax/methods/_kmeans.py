"""k-means on the device, for the methods that cluster their embeddings."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from ssl_jax.losses._common import normalize


@functools.partial(jax.jit, static_argnames=("k", "iterations", "spherical", "block_size"))
def kmeans(
    rng: Key[Array, ""],
    points: Float[Array, "points dim"],
    k: int,
    *,
    iterations: int,
    spherical: bool = True,
    valid: Bool[Array, "points"] | None = None,
    init: Float[Array, "k dim"] | None = None,
    block_size: int = 4096,
) -> tuple[Float[Array, "k dim"], Int[Array, "points"]]:
    """Lloyd's algorithm: assign each point to the nearest centroid, move each centroid to its points' mean.

    The centroid of an empty cluster stays where it is.

    Args:
      rng: draws the initial centroids; not used with `init`.
      points: [points, dim].
      k: clusters, at most as many as there are points.
      iterations: moves, >= 0; assigned is once more, to the final centroids.
      spherical: points and centroids are normalized, and nearest is what has the largest cosine; else Euclidean.
      valid: [points], True for those that count; by default all.
      init: [k, dim] centroids; by default distinct valid points, some twice if there are fewer than k.
      block_size: points that distances are computed for at a time: [block_size, k] is the largest array beside them.

    Returns: centroids, float32, of unit length if spherical; for each point its cluster, -1 where it is not valid.
    Raises: ValueError if the shapes do not agree, or k is not in 1, ..., points.
    Source: as DeepCluster-v2 has it: Caron et al. 2020, arXiv:2006.09882, in the authors' code.
    """
    if points.ndim != 2 or not 1 <= k <= len(points):
        raise ValueError(f"{k} clusters need points [points, dim], as many of them at least, got {points.shape}")
    if init is not None and init.shape != (k, points.shape[1]):
        raise ValueError(f"init must be [k, dim] = {(k, points.shape[1])}, got {init.shape}")
    if valid is not None and valid.shape != points.shape[:1]:
        raise ValueError(f"valid must be [points], got {valid.shape} for {points.shape}")
    prepare = normalize if spherical else lambda x: x.astype(jnp.float32)
    points = prepare(points)
    valid = jnp.full(len(points), True) if valid is None else valid
    block_size = min(block_size, len(points))
    blocks, weights = (_blocks(x, block_size) for x in (points, valid.astype(jnp.float32)))

    def move(_, centroids):
        def add(totals, block):
            points, weight = block
            weighted = jnp.concatenate([points * weight[:, None], weight[:, None]], axis=1)
            return totals + jax.ops.segment_sum(weighted, _assign(centroids, points, spherical), k), None

        totals, _ = lax.scan(add, jnp.zeros((k, points.shape[1] + 1)), (blocks, weights))
        sums, sizes = totals[:, :-1], totals[:, -1:]
        return prepare(jnp.where(sizes > 0, sums / jnp.maximum(sizes, 1.0), centroids))

    init = points[_draw(rng, valid, k)] if init is None else prepare(init)
    centroids = lax.fori_loop(0, iterations, move, init)
    assignments = nearest(points, centroids, spherical=spherical, block_size=block_size)
    return centroids, jnp.where(valid, assignments, -1)


def nearest(
    points: Float[Array, "points dim"],
    centroids: Float[Array, "k dim"],
    *,
    spherical: bool = False,
    block_size: int = 4096,
) -> Int[Array, "points"]:
    """For each point the index of the nearest centroid, or if spherical of that with the largest scalar product.

    The first of several that are equally near. block_size: as `kmeans` takes it.
    """
    blocks = _blocks(points, min(block_size, len(points)))
    return lax.map(lambda block: _assign(centroids, block, spherical), blocks).reshape(-1)[: len(points)]


def _assign(centroids, block, spherical):
    likeness = jnp.matmul(block, centroids.T, precision="highest")
    if not spherical:
        likeness -= jnp.sum(centroids * centroids, axis=1) / 2.0  # (|block|^2 - |block - centroid|^2) / 2
    return jnp.argmax(likeness, axis=1)


def _blocks(x, block_size):
    """`x`, padded by zeros, as [blocks, block_size, ...]."""
    count = -(-len(x) // block_size)
    padded = jnp.pad(x, [(0, count * block_size - len(x))] + [(0, 0)] * (x.ndim - 1))
    return padded.reshape(count, block_size, *x.shape[1:])


def _draw(rng, valid, k):
    """k distinct indices of valid points; all of them again and again where they are fewer."""
    order = jnp.argsort(jnp.where(valid, jax.random.uniform(rng, valid.shape), 2.0))
    return order[jnp.arange(k) % jnp.maximum(jnp.sum(valid), 1)]

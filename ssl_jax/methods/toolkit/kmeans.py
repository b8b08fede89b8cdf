"""k-means on the device, for methods that cluster their embeddings."""

# pyright: reportUnknownMemberType=false

import functools
from typing import cast

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from ssl_jax.methods.toolkit.banks import Bank, own, rows_of_all
from ssl_jax.methods.toolkit.memories import gather
from ssl_jax.ops import global_sum, normalize, num_rows, vary_like
from ssl_jax.ops.shards import Shard


@functools.partial(jax.jit, static_argnames=("k", "iterations", "spherical", "divide", "block_size", "axis_name"))
def kmeans(
    rng: Key[Array, ""],
    points: Float[Array, "points dim"],
    k: int,
    *,
    iterations: int,
    spherical: bool = True,
    valid: Bool[Array, " points"] | None = None,
    init: Float[Array, "k dim"] | None = None,
    divide: bool = False,
    block_size: int = 4096,
    axis_name: str | None = None,
) -> tuple[Float[Array, "k dim"], Int[Array, " points"]]:
    """Lloyd's algorithm: assign each point to the nearest centroid, move each centroid to the mean of its points.

    The centroid of an empty cluster stays where it is, or with `divide` becomes one half of another.

    Args:
      rng: draws the first centroids; not used with `init`.
      points: [points, dim].
      k: number of clusters, at most that of points.
      iterations: how often the centroids move, >= 0. Points are assigned once more after the last move.
      spherical: points and centroids are normalized, and the nearest centroid is the one with the largest cosine.
        Otherwise distances are Euclidean.
      valid: [points], True for points that count. None: all count.
      init: [k, dim], the first centroids. None: distinct valid points; some are used twice if there are fewer than k.
      divide: after each move an empty cluster takes the place of another, drawn by its size, as faiss does it: see
        `divide_into_empty`. The last assignment may leave clusters empty.
      block_size: number of points whose distances are computed at a time. Beside the points, the largest array is
        [block_size, k].
      axis_name: mapped axis that points and valid are divided over, evenly; None if they are whole. Each device assigns
        its own points; sums and sizes of the clusters are sent, [k, dim + 1] numbers an iteration.

    Returns: the centroids, float32, of unit length if spherical, the same on every device; and each point's cluster, -1
      where it is not valid.
    Raises: ValueError if the shapes do not agree, or k is not in 1, ..., points.
    Source: DeepCluster-v2's, Caron et al. 2020, arXiv:2006.09882, in the authors' code.
    """
    if points.ndim != 2 or not 1 <= k <= num_rows(points, axis_name):
        raise ValueError(f"{k} clusters need points [points, dim] with at least {k} rows, got {points.shape}")
    if init is not None and init.shape != (k, points.shape[1]):
        raise ValueError(f"init must be [k, dim] = {(k, points.shape[1])}, got {init.shape}")
    if valid is not None and valid.shape != points.shape[:1]:
        raise ValueError(f"valid must be [points], got {valid.shape} for {points.shape}")

    def prepare(rows: Float[Array, "rows dim"]) -> Float[Array, "rows dim"]:
        return normalize(rows) if spherical else rows.astype(jnp.float32)

    points = prepare(points)
    valid = jnp.full(len(points), True) if valid is None else valid
    block_size = min(block_size, len(points))
    blocks, weights = (in_blocks(x, block_size) for x in (points, valid.astype(jnp.float32)))

    def move(i: int | Int[Array, ""], centroids: Float[Array, "k dim"]) -> Float[Array, "k dim"]:
        def add(
            totals: Float[Array, "k columns"], block: tuple[Array, Array]
        ) -> tuple[Float[Array, "k columns"], None]:
            points, weight = block
            weighted = jnp.concatenate([points * weight[:, None], weight[:, None]], axis=1)
            return totals + jax.ops.segment_sum(weighted, _assign(centroids, points, spherical), k), None

        zeros = vary_like(jnp.zeros((k, points.shape[1] + 1)), blocks)
        totals = global_sum(lax.scan(add, zeros, (blocks, weights))[0], axis_name)
        sums, sizes = totals[:, :-1], totals[:, -1:]
        centroids = prepare(jnp.where(sizes > 0, sums / jnp.maximum(sizes, 1.0), centroids))
        return prepare(divide_into_empty(jax.random.fold_in(rng, i), centroids, sizes[:, 0])) if divide else centroids

    init = _draw(rng, points, valid, k, axis_name) if init is None else prepare(init)
    centroids = cast(Array, lax.fori_loop(0, iterations, move, init))
    assignments = nearest(points, centroids, spherical=spherical, block_size=block_size)
    return centroids, jnp.where(valid, assignments, -1)


def nearest(
    points: Float[Array, "points dim"],
    centroids: Float[Array, "k dim"],
    *,
    spherical: bool = False,
    block_size: int = 4096,
) -> Int[Array, " points"]:
    """For each point the index of the nearest centroid; if spherical, of the one with the largest scalar product.

    Of several that are equally near it is the first. block_size: see `kmeans`.
    """
    blocks = in_blocks(points, min(block_size, len(points)))
    assignments = cast(Array, lax.map(functools.partial(_assign, centroids, spherical=spherical), blocks))
    return assignments.reshape(-1)[: len(points)]


def _assign(
    centroids: Float[Array, "k dim"], block: Float[Array, "points dim"], spherical: bool
) -> Int[Array, " points"]:
    likeness = jnp.matmul(block, centroids.T, precision="highest")
    if not spherical:
        likeness -= jnp.sum(centroids * centroids, axis=1) / 2.0  # (|block|^2 - |block - centroid|^2) / 2
    return jnp.argmax(likeness, axis=1)


def in_blocks(x: Shaped[Array, "points ..."], block_size: int) -> Shaped[Array, "blocks block_size ..."]:
    """`x` as [blocks, block_size, ...], padded with zeros."""
    count = -(-len(x) // block_size)
    padded = jnp.pad(x, [(0, count * block_size - len(x))] + [(0, 0)] * (x.ndim - 1))
    return padded.reshape(count, block_size, *x.shape[1:])


def sizes_of(assignments: Bank, k: int, axis_name: str | None = None) -> Int[Array, "{k}"]:
    """Members of each cluster. Assignment -1 belongs to no cluster.

    assignments: of each point. axis_name: mapped axis that they are divided over; a divided bank knows it by itself.
    """
    axis_name = assignments.route.axis_name if isinstance(assignments, Shard) else axis_name
    mine = own(assignments)
    sizes = jax.ops.segment_sum((mine >= 0).astype(jnp.int32), jnp.maximum(mine, 0), k)
    return global_sum(sizes, axis_name)


def divide_into_empty(
    rng: Key[Array, ""], centroids: Float[Array, "k dim"], sizes: Float[Array, " k"]
) -> Float[Array, "k dim"]:
    """Each empty cluster gets the centroid of another, and the two move apart by 1 / 1024 of each coordinate.

    The other is drawn with probability proportional to its size - 1. Then each of the two counts for half of its size.

    Source: faiss (Clustering.cpp), the k-means of DeepCluster's authors.
    """
    order = jnp.argsort(sizes > 0)  # the empty ones first
    step = jnp.where(jnp.arange(centroids.shape[1]) % 2 == 0, 1.0, -1.0) / 1024

    def divide(i: int | Int[Array, ""], carry: tuple[Array, Array]) -> tuple[Array, Array]:
        centroids, sizes = carry
        empty = order[i]
        large = jax.random.categorical(jax.random.fold_in(rng, i), jnp.log(jnp.maximum(sizes - 1.0, 0.0)))
        half, row = jnp.floor(sizes[large] / 2.0), centroids[large]
        centroids = centroids.at[empty].set(row * (1.0 + step)).at[large].set(row * (1.0 - step))
        return centroids, sizes.at[empty].set(half).at[large].add(-half)

    centroids, _ = cast(tuple[Array, Array], lax.fori_loop(0, jnp.sum(sizes == 0), divide, (centroids, sizes)))
    return centroids


def _draw(
    rng: Key[Array, ""],
    points: Float[Array, "points dim"],
    valid: Bool[Array, " points"],
    k: int,
    axis_name: str | None,
) -> Float[Array, "{k} dim"]:
    """k distinct valid points. If there are fewer, all of them again and again."""
    valid = gather(valid, axis_name)
    order = jnp.argsort(jnp.where(valid, jax.random.uniform(rng, valid.shape), 2.0))
    chosen = order[jnp.arange(k) % jnp.maximum(jnp.sum(valid), 1)]
    return points[chosen] if axis_name is None else rows_of_all(points, chosen, axis_name)

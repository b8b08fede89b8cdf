"""A codebook of points that k-means over batches moves: BEiT's tokens without a network, iGPT's palette."""

# pyright: reportUnknownMemberType=false

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from ssl_jax import ops
from ssl_jax.methods.toolkit import kmeans, memories, tiling
from ssl_jax.ops import first_row, global_sum

# {"centroids": [codes, dim], "sizes": [codes], how many points of a batch each has, averaged as the centroids are}
Codebook = dict[str, Array]


def empty(codes: int, dim: int) -> Codebook:
    """Before the first batch."""
    return {"centroids": jnp.zeros((codes, dim)), "sizes": jnp.zeros(codes)}


def reduced_bytes(codes: int, dim: int) -> int:
    """What a step of `fit` sends by all-reduce: of each code the sum of its points, their number, and the point that it
    may begin anew at."""
    return 4 * codes * (2 * dim + 1)


def tokenize(
    centroids: Float[Array, "codes dim"], points: Float[Array, "batch points dim"]
) -> Int[Array, "batch points"]:
    """The index of the centroid nearest to each point."""
    return kmeans.nearest(points.reshape(-1, points.shape[-1]), centroids).reshape(points.shape[:2])


def fit(
    codebook: Codebook,
    points: Float[Array, "batch points dim"],
    rng: Key[Array, ""],
    index: ops.Index,
    *,
    decay: float,
    restart_below: float,
    axis_name: str | None,
) -> tuple[Int[Array, "batch points"], Float[Array, "codes"], Codebook]:
    """One step of k-means over batches -> (the points' tokens, points of each code in the global batch, new codebook).

    A centroid is the average of the points that were assigned to it. A batch's points weigh `decay` to the power of the
    batch's age. The sizes are averaged in the same way.

    After that, a code is dead if it has less than `restart_below` of the mean number of points of a code. A dead code
    forgets its points and begins anew at a point of this batch. A point is drawn with a probability that grows with the
    square of its distance from its centroid. So no code begins at a point that has a centroid already, such as a flat
    patch of an image: those are many, and equal but for rounding.

    The tokens are those of the codebook as it comes in.

    Args:
      codebook: all zeros at first. Then the tokens of all points are 0.
      points: this device's rows of the batch.
      rng, index: the key of the drawing, and the images' numbers.
      axis_name: mapped axis that the batch is spread over. The tokens are those of this device's rows; all else is the
        same on all devices.
    Source: the exponential averages of van den Oord et al. 2017, arXiv:1711.00937, appendix A.1, without a network;
      restarts as in Dhariwal et al. 2020, arXiv:2005.00341, section 3.1, with the distances of k-means++ (Arthur and
      Vassilvitskii 2007).
    """
    centroids, codes = codebook["centroids"], len(codebook["sizes"])
    tokens = tokenize(centroids, points)
    rows, labels = points.reshape(-1, points.shape[-1]), tokens.reshape(-1)
    counts = global_sum(jax.ops.segment_sum(jnp.ones(len(rows)), labels, codes), axis_name)
    sums = global_sum(jax.ops.segment_sum(rows, labels, codes), axis_name)
    old, new = decay * codebook["sizes"], jnp.where(codebook["sizes"] > 0, 1.0 - decay, 1.0)
    sizes = old + new * counts
    moved = (old[:, None] * centroids + new[:, None] * sums) / jnp.where(sizes > 0, sizes, 1.0)[:, None]
    dead = sizes < restart_below * jnp.sum(counts) / codes
    distances = jnp.sum((points - centroids[tokens]) ** 2, axis=-1)
    fresh = draw_points(rng, index, points, distances, codes, axis_name)[jnp.cumsum(dead) - 1]  # the first ones drawn
    moved = jnp.where(dead[:, None], fresh, jnp.where(sizes[:, None] > 0, moved, centroids))
    return tokens, counts, {"centroids": moved, "sizes": jnp.where(dead, 0.0, sizes)}


def draw_points(
    rng: Key[Array, ""],
    index: ops.Index,
    points: Float[Array, "batch points dim"],
    weights: Float[Array, "batch points"],
    count: int,
    axis_name: str | None,
) -> Float[Array, "count dim"]:
    """Draws `count` different points of the global batch. The same on any number of devices.

    One point is drawn after the other. Each time, the probability of each point that is left is proportional to its
    weight, >= 0.

    Source: Efraimidis and Spirakis 2006, Weighted random sampling with a reservoir.
    """
    scores = (jnp.log(tiling.uniform(rng, index, points.shape[1:2])) / weights).reshape(-1)
    everywhere = memories.gather(scores, axis_name)
    mine = lax.top_k(everywhere, count)[1] - first_row(scores, axis_name)
    here = (mine >= 0) & (mine < len(scores))
    rows = points.reshape(len(scores), -1)[jnp.clip(mine, 0, len(scores) - 1)]
    return global_sum(jnp.where(here[:, None], rows, 0.0), axis_name)

"""k-means of unit vectors that arrive batch by batch, with a lower bound on the size of each cluster: for CoKe."""

# pyright: reportUnknownMemberType=false

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ssl_jax.methods.toolkit import memories
from ssl_jax.ops import normalize

# "centers": [k, dim] of the last epoch. "moving": [k, dim], those of this epoch. "counts": [k], the vectors that each
# of these has had. "duals": [k], what is added to the likeness of each cluster.
Clusters = Mapping[str, Array]


def create(rng: Key[Array, ""], k: int, dim: int) -> Clusters:
    """Clusters around random directions."""
    centers = memories.directions(rng, k, dim)
    return {"centers": centers, "moving": centers, "counts": jnp.zeros(k), "duals": jnp.zeros(k)}


def assign(clusters: Clusters, z: Float[Array, "batch dim"]) -> Int[Array, " batch"]:
    """For each row the cluster with the largest scalar product plus dual variable."""
    likeness = jnp.matmul(z, clusters["moving"].T, precision="highest") + clusters["duals"]
    return jnp.argmax(likeness, axis=1).astype(jnp.int32)


def move(
    clusters: Clusters, z: Float[Array, "batch dim"], labels: Int[Array, " batch"], *, rate: float, bound: float
) -> Clusters:
    """The clusters after a batch of all devices' rows that were assigned so.

    A center becomes the mean of its rows of this epoch, as a unit vector. With s the cluster's share of the batch, its
    dual variable becomes max(0, dual + rate * (bound / k - s)): it grows while the cluster gets less than its bound.

    Args:
      bound: in [0, 1], the least share of all rows that a cluster has, times k. With 1 all clusters are equal, and dual
        variables may be negative.
      rate: > 0, of the gradient descent on the dual variables.

    Source: Qian et al. 2022, arXiv:2105.11527, section 3.2, and the authors' code.
    """
    k = len(clusters["duals"])
    new = jax.ops.segment_sum(jnp.ones(len(z)), labels, k)
    sums = jax.ops.segment_sum(z, labels, k)
    counts = clusters["counts"] + new
    means = (clusters["moving"] * clusters["counts"][:, None] + sums) / jnp.maximum(counts, 1.0)[:, None]
    duals = clusters["duals"] + rate * (bound / k - new / len(z))
    return {
        **clusters,
        "moving": jnp.where(new[:, None] > 0, normalize(means), clusters["moving"]),
        "counts": counts,
        "duals": duals if bound == 1.0 else jnp.maximum(duals, 0.0),
    }


def next_epoch(clusters: Clusters) -> Clusters:
    """The clusters at the end of an epoch: the centers that moved are the new ones, and are counted anew."""
    return {**clusters, "centers": clusters["moving"], "counts": jnp.zeros_like(clusters["counts"])}

"""Metrics of features from distances to nearest neighbors, without labels. Pure functions, usable inside jit."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ssl_jax.ops import center, normalize

ROWS = 512  # compared with all others at a time


def nearest_neighbor_entropy(h: Float[Array, "images dim"]) -> Float[Array, ""]:
    """Mean log distance of each normalized row to the nearest other one.

    The part of Kozachenko and Leonenko's entropy estimate that depends on the features; equal to minus `losses.koleo`.
    The estimate's constants and its factor dim are left out: they hold if the nearest neighbor is near, which it is not
    in many dimensions. Higher means more evenly spread. More rows lower it, so compare equal numbers of rows.
    log sqrt(2) = 0.35 for orthogonal rows, log 2 for two opposite ones, log(1e-8) for duplicates. Needs two rows.

    Source: Kozachenko and Leonenko 1987; on the sphere Sablayrolles et al. 2018, arXiv:1806.03198, section 3.
    """
    return jnp.mean(jnp.log(jnp.maximum(_distances(normalize(h), 1), 1e-8)))


def two_nn(h: Float[Array, "images dim"]) -> Float[Array, ""]:
    """Intrinsic dimension: how fast, locally, the number of neighbors grows with the distance.

    count / sum_i log(r2_i / r1_i), with r1 and r2 the Euclidean distances to the nearest and the second nearest other
    row. This is the maximum likelihood estimate if the density is constant up to r2. Rows with a duplicate do not
    count. Too small for dimensions above about 20, unless there are exponentially many rows.

    Needs three rows. NaN if all rows have a duplicate; infinite if r1 equals r2 for all rows, as on a grid.
    Source: Facco et al. 2017, arXiv:1803.06992, eq. 5; no row is left out as an outlier.
    """
    h = center(h, None)
    h /= jnp.maximum(jnp.max(jnp.abs(h)), jnp.finfo(jnp.float32).tiny)  # so that no square overflows
    first, second = _distances(h, 2).T
    counted = first != 0.0
    logs = jnp.log(jnp.where(counted, second / jnp.where(counted, first, 1.0), 1.0))
    return jnp.sum(counted) / jnp.sum(logs)


def _distances(h: Float[Array, "images dim"], k: int) -> Float[Array, "images k"]:
    """Euclidean distances of each row to the k nearest others, ascending."""
    squares = jnp.sum(h**2, axis=1)

    def of_row(i):
        # Squared distances up to the row's own square, which does not change their order. highest: see knn.py.
        relative = squares - 2.0 * jnp.matmul(h, h[i], precision="highest")
        _, rows = lax.top_k(-relative.at[i].set(jnp.inf), k)
        # Computed from the differences: the root of `relative` would have an error of 3e-4 of the row's length.
        return jnp.sort(jnp.linalg.norm(h[rows] - h[i], axis=1))

    return lax.map(of_row, jnp.arange(len(h)), batch_size=ROWS)

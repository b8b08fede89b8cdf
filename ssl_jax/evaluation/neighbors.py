"""What the distances to the nearest neighbors say of features, without labels. Pure functions, usable inside jit."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ssl_jax.evaluation.knn import QUERIES
from ssl_jax.losses._common import center, normalize


def nearest_neighbor_entropy(h: Float[Array, "images dim"]) -> Float[Array, ""]:
    """Mean log distance of each normalized row to the nearest other one.

    What of the entropy estimate of Kozachenko and Leonenko depends on the features, and minus `losses.koleo`. Its
    constants and its factor dim are left out: they hold where the nearest neighbor is near, which in many dimensions
    it is not. Higher is more evenly spread; lower, too, the more rows there are, so compare equal numbers of them.
    log sqrt(2) = 0.35 for orthogonal rows, log 2 for two opposite ones, log(1e-8) for duplicates. Needs two rows.

    Source: Kozachenko and Leonenko 1987; on the sphere Sablayrolles et al. 2018, arXiv:1806.03198, section 3.
    """
    return jnp.mean(jnp.log(jnp.maximum(_distances(normalize(h), 1), 1e-8)))


def two_nn(h: Float[Array, "images dim"]) -> Float[Array, ""]:
    """Intrinsic dimension: how fast, locally, the number of neighbors grows with the distance.

    count / sum_i log(r2_i / r1_i), r1 and r2 the Euclidean distances to the nearest and the second nearest other row;
    the maximum of the likelihood if the density is constant as far as r2. Rows with a duplicate do not count. Too small
    for dimensions above about 20, unless there are exponentially many rows.

    Needs three rows; NaN if all have a duplicate, infinite if the two are equally near everywhere, as on a grid.
    Source: Facco et al. 2017, arXiv:1803.06992, eq. 5; all rows are taken, none is left out as an outlier.
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
        # Up to the row's own square, which changes no order. highest: see knn.py.
        relative = squares - 2.0 * jnp.matmul(h, h[i], precision="highest")
        _, rows = lax.top_k(-relative.at[i].set(jnp.inf), k)
        # Of the differences: the root of `relative` would have an error of 3e-4 of the row's length.
        return jnp.sort(jnp.linalg.norm(h[rows] - h[i], axis=1))

    return lax.map(of_row, jnp.arange(len(h)), batch_size=QUERIES)

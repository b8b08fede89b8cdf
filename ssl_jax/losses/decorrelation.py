"""Decorrelation losses: every dimension of a projection should vary, and no two dimensions should vary together.

Statistics are those of the global batch, and gradients flow through them. So the trivial way to make two views agree,
the same embedding for every image, is the worst.
"""

from typing import cast

import jax.numpy as jnp
from jax import lax, nn
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from ssl_jax import ops


def barlow_twins(
    z1: Float[Array, "batch dim"],
    z2: Float[Array, "batch dim"],
    *,
    off_diagonal_weight: float = 5e-3,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Redundancy reduction: draws the cross-correlation of two views towards the identity.

    loss = sum_i (1 - C_ii)^2 + off_diagonal_weight * sum_{i != j} C_ij^2, where C [dim, dim] is the correlation, over
    the global batch, of z1's columns with z2's: C_ij in [-1, 1]. The loss grows with dim.

    Args:
      z1, z2: [batch, dim] projections of two views, any scale; row i of both shows image i.
      off_diagonal_weight: the paper's lambda, >= 0.
      axis_name: mapped axis that the batch is sharded over; None if z1, z2 are the whole batch.

    Returns: float32 scalar >= 0, the same on every device; smallest if C is the identity.
    Raises: ValueError if z1 and z2 are not [batch, dim] of one shape, or the global batch has fewer than two rows.
    Source: Zbontar et al. 2021, arXiv:2103.03230, eq. 1-2. The standard deviation is biased, with eps 1e-5, as in the
      BatchNorm of the authors' code; their algorithm 1 has the unbiased one.
    """
    z1, z2 = _pair(z1, z2, axis_name)
    z1, z2 = (ops.standardize(z, axis_name) for z in (z1, z2))
    c = ops.second_moment(z1, z2, axis_name)
    return jnp.sum((1.0 - c.diagonal()) ** 2) + off_diagonal_weight * _off_diagonal_squares(c)


def vicreg(
    z1: Float[Array, "batch dim"],
    z2: Float[Array, "batch dim"],
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Variance, invariance, covariance: two views agree, every dimension varies, no two dimensions vary together.

    loss = invariance * s + variance * (v(z1) + v(z2)) / 2 + covariance * (c(z1) + c(z2)), with
    s = the mean over batch and dim of (z1 - z2)^2, v(z) = mean_i max(0, 1 - sqrt(C_ii + 1e-4)),
    c(z) = sum_{i != j} C_ij^2 / dim; C [dim, dim] is z's covariance over the global batch, with divisor batch - 1.

    Args:
      z1, z2: [batch, dim] projections of two views; their scale matters. Row i of both shows image i.
      invariance, variance, covariance: the paper's lambda, mu, nu, >= 0.
      axis_name: mapped axis that the batch is sharded over; None if z1, z2 are the whole batch.

    Returns: float32 scalar >= 0; its mean over devices is the loss of the whole batch.
    Raises: ValueError if z1 and z2 are not [batch, dim] of one shape, or the global batch has fewer than two rows.
    Source: Bardes et al. 2021, arXiv:2105.04906, eq. 1-6. v is averaged over the branches as in the authors' code; eq.
      6 adds them.
    """
    z1, z2 = _pair(z1, z2, axis_name)
    z = jnp.stack([z1, z2], axis=1)
    loss = invariance * jnp.mean((z1 - z2) ** 2) + variance * _hinge(z, axis_name)
    return loss + 2.0 * covariance * _covariance_penalty(z, axis_name)


def vibcreg(
    z1: Float[Array, "batch dim"],
    z2: Float[Array, "batch dim"],
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 200.0,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """VICReg with the correlation in place of the covariance: it is in [-1, 1] at any scale of the dimensions.

    loss = invariance * s + variance * (v(z1) + v(z2)) + covariance * (r(z1) + r(z2)), with `vicreg`'s s and v, and
    r(z) = sum_{i != j} R_ij^2 / dim^2; R [dim, dim] is the correlation of z's columns over the global batch.

    Args:
      z1, z2: [batch, dim] projections of two views; their scale matters to s and v. Row i of both shows image i.
      invariance, variance, covariance: the paper's lambda, mu, nu, >= 0.
      axis_name: mapped axis that the batch is sharded over; None if z1, z2 are the whole batch.

    Returns: float32 scalar >= 0; its mean over devices is the loss of the whole batch.
    Raises: ValueError if z1 and z2 are not [batch, dim] of one shape, or the global batch has fewer than two rows.
    Source: Lee & Aune 2021, arXiv:2109.00783, and the authors' code, which adds v over the branches. The iterative
      normalization of its expander is part of the network, not of this loss.
    """
    z1, z2 = _pair(z1, z2, axis_name)
    loss = invariance * jnp.mean((z1 - z2) ** 2)
    for z in (z1, z2):
        unit = ops.standardize(z, axis_name, eps=1e-12)
        correlation = _off_diagonal_squares(ops.second_moment(unit, unit, axis_name)) / z.shape[1] ** 2
        loss += variance * _hinge(z, axis_name) + covariance * correlation
    return loss


def vicregl_global(
    views: Float[Array, "views batch dim"],
    *,
    num_global: int = 2,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """VICRegL's loss of the pooled embeddings: `vicreg` for two global views and any number of further ones.

    loss = invariance * the mean of s over the pairs (global view, other view) + variance * the mean of v over the views
    + covariance * the mean of c over the views, with `vicreg`'s s, v and c. So with two views, c has half the weight
    that it has in `vicreg`.

    Args:
      views: [views, batch, dim] projections, the global views first; their scale matters. Row i of all shows image i.
      num_global: number of global views, 1 to views.
      invariance, variance, covariance: >= 0.
      axis_name: mapped axis that the batch is sharded over; None if views holds the whole batch.

    Returns: float32 scalar >= 0; its mean over devices is the loss of the whole batch.
    Raises: ValueError if views is not [views, batch, dim] with at least two views, the global batch has fewer than two
      rows, or num_global is not 1 to views.
    Source: Bardes et al. 2022, arXiv:2210.01571, section 3, as in the authors' code.
    """
    if views.ndim != 3 or len(views) < 2 or not 1 <= num_global <= len(views):
        raise ValueError(
            "views must be [views, batch, dim] with at least two views, and num_global in 1..views, "
            f"got {views.shape} and num_global {num_global}"
        )
    views = views.astype(jnp.float32)
    z = _rows(jnp.moveaxis(views, 0, 1), axis_name)
    differences = views[:num_global, None] - views  # a view and itself add nothing
    pairs = num_global * (len(views) - 1)
    s = jnp.sum(jnp.mean(differences**2, axis=(2, 3))) / pairs
    return invariance * s + variance * _hinge(z, axis_name) + covariance * _covariance_penalty(z, axis_name)


def vicregl_local(
    maps1: Float[Array, "batch positions1 dim"],
    maps2: Float[Array, "batch positions2 dim"],
    positions1: Float[Array, "batch positions1 2"],
    positions2: Float[Array, "batch positions2 2"],
    *,
    matches: tuple[int, int] = (20, 4),
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """VICRegL's loss of two feature maps: positions at the same place of the image, or with similar features, agree.

    Each position of one map is matched with the nearest position of the other, once by location (image coordinates) and
    once by features. By location, the closest `matches` pairs of each image are kept; by features, all pairs. Each set
    of pairs (x, y) [batch, pairs, dim] gives l(x, y) = invariance * the mean of (x - y)^2
    + variance * (v(x) + v(y)) / 2 + covariance * (c(x) + c(y)) / 2. Here v and c are `vicreg`'s over the global batch,
    computed at each pair (in the order of x's positions) and averaged over the pairs. The loss is the sum of l by
    location and l by features. Each is the mean of both directions, map 1 to map 2 and back.

    Args:
      maps1, maps2: [batch, positions, dim] projections of the positions of two views' feature maps; row i of both shows
        image i. A map's positions are in the same order for all images.
      positions1, positions2: [batch, positions, 2], their image coordinates, both in the same unit, with flips undone.
      matches: numbers of pairs to keep by location, of map 1's positions and of map 2's, >= 1. A map with fewer keeps
        all.
      invariance, variance, covariance: >= 0.
      axis_name: mapped axis that the batch is sharded over; None if the arrays hold the whole batch.

    Returns: float32 scalar >= 0; its mean over devices is the loss of the whole batch. The choice of pairs carries no
      gradient.
    Raises: ValueError if the shapes do not agree, the global batch has fewer than two rows, or matches < 1.
    Source: Bardes et al. 2022, arXiv:2210.01571, section 3; as in the authors' code, which keeps all pairs by features.
    """
    if maps1.ndim != 3 or maps2.ndim != 3 or maps1.shape[::2] != maps2.shape[::2]:
        raise ValueError(f"maps must be [batch, positions, dim] of one batch and dim, got {maps1.shape}, {maps2.shape}")
    if positions1.shape != (*maps1.shape[:2], 2) or positions2.shape != (*maps2.shape[:2], 2):
        raise ValueError(
            f"positions must be [batch, positions, 2] for the maps {maps1.shape}, {maps2.shape}, got "
            f"{positions1.shape}, {positions2.shape}"
        )
    if min(matches) < 1:
        raise ValueError(f"matches must be at least 1, got {matches}")
    maps1, maps2 = (_rows(maps.astype(jnp.float32), axis_name) for maps in (maps1, maps2))

    def matched(
        maps: Float[Array, "batch positions dim"],
        others: Float[Array, "batch others dim"],
        distances: Float[Array, "batch positions others"],
        count: int,
    ) -> Float[Array, ""]:
        x, y = _matched_pairs(maps, others, distances, count)
        z = jnp.concatenate([x, y], axis=1)
        loss = invariance * jnp.mean((x - y) ** 2) + variance * _hinge(z, axis_name)
        return loss + covariance * _covariance_penalty(z, axis_name)

    def both_directions(
        distances: Float[Array, "batch positions1 positions2"], count1: int, count2: int
    ) -> Float[Array, ""]:
        there = matched(maps1, maps2, distances, count1)
        return 0.5 * (there + matched(maps2, maps1, distances.swapaxes(1, 2), count2))

    by_location = both_directions(_squared_distances(positions1, positions2), *matches)
    by_features = both_directions(_squared_distances(maps1, maps2), maps1.shape[1], maps2.shape[1])
    return by_location + by_features


def _squared_distances(
    x: Float[Array, "batch positions dim"], y: Float[Array, "batch others dim"]
) -> Float[Array, "batch positions others"]:
    """[batch, positions of x, positions of y]. They are only used to choose indices, which carry no gradient."""
    # Not |x|^2 + |y|^2 - 2xy: its rounding errors would decide between near neighbors. XLA fuses this into the sum.
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.sum((x[:, :, None] - y[:, None]) ** 2, axis=-1)


def _matched_pairs(
    maps: Float[Array, "batch positions dim"],
    others: Float[Array, "batch others dim"],
    distances: Float[Array, "batch positions others"],
    count: int,
) -> tuple[Float[Array, "batch pairs dim"], Float[Array, "batch pairs dim"]]:
    """(the `count` rows of each map with the nearest neighbors in the other, in the map's order; those neighbors)."""
    closest = jnp.sort(lax.top_k(-jnp.min(distances, axis=-1), min(count, maps.shape[1]))[1])
    neighbors = jnp.take_along_axis(jnp.argmin(distances, axis=-1), closest, axis=1)
    x, y = (jnp.take_along_axis(rows, i[..., None], axis=1) for rows, i in ((maps, closest), (others, neighbors)))
    return x, y


def w_mse(
    z1: Float[Array, "batch dim"],
    z2: Float[Array, "batch dim"],
    *,
    eps: float = 0.0,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Whitening: the mean squared distance of two views on the sphere, after each view's dimensions were decorrelated.

    Each view is whitened by itself: w = L^-1 (z - mean), with the Cholesky factorization L L^T = (1 - eps) C + eps I. C
    is z's covariance over the global batch, with divisor batch - 1. loss = the mean over the batch of
    2 - 2 cos(w1, w2). The gradient flows through L. A millionth of C's mean diagonal is added to the diagonal, because
    of float32's rounding.

    Args:
      z1, z2: [batch, dim] projections of two views; row i of both shows image i. The global batch should have at least
        2 dim rows. With dim or fewer, C is singular and w depends on rounding errors.
      eps: shrinkage of the covariance towards the identity, in [0, 1].
      axis_name: mapped axis that the batch is sharded over; None if z1, z2 are the whole batch.

    Returns: float32 scalar in [0, 4]; its mean over devices is the loss of the whole batch.
    Raises: ValueError if z1 and z2 are not [batch, dim] of one shape, or the global batch has fewer than two rows.
    Source: Ermolov et al. 2020, arXiv:2007.06346, section 3. The method whitens sub-batches: it passes them one by one.
    """
    z1, z2 = _pair(z1, z2, axis_name)
    w1, w2 = (ops.normalize(_whiten(z, eps, axis_name)) for z in (z1, z2))
    return jnp.mean(2.0 - 2.0 * jnp.sum(w1 * w2, axis=-1))


def _whiten(z: Float[Array, "batch dim"], eps: float, axis_name: str | None) -> Float[Array, "batch dim"]:
    """L^-1 (z - mean) for every row z."""
    c = _covariance(z, axis_name)
    # If dimensions are linearly dependent, rounding gives C eigenvalues below 0, and the factor is NaN. With 256 and
    # 512 dimensions of rank half that, 3e-7 of the mean variance was sometimes too little; 1e-6 was enough.
    ridge = jnp.maximum(1e-6 * jnp.mean(c.diagonal()), 1e-24)
    factor = cast(Array, jnp.linalg.cholesky((1.0 - eps) * c + (eps + ridge) * jnp.eye(len(c))))
    return solve_triangular(factor, ops.center(z, axis_name).T, lower=True).T


def _pair(
    z1: Float[Array, "..."], z2: Float[Array, "..."], axis_name: str | None
) -> tuple[Float[Array, "batch dim"], Float[Array, "batch dim"]]:
    """Checks the shapes of two views and returns them in float32."""
    ops.check_rows(z1=z1, z2=z2)
    return _rows(z1.astype(jnp.float32), axis_name), _rows(z2.astype(jnp.float32), axis_name)


def _rows(z: Float[Array, "batch ..."], axis_name: str | None) -> Float[Array, "batch ..."]:
    """Checks that the global batch has enough rows for a covariance, and returns `z` [batch, ...]."""
    if ops.num_rows(z, axis_name) < 2:
        raise ValueError(f"a covariance needs at least two images, got {z.shape}")
    return z


def _covariance(z: Float[Array, "batch *groups dim"], axis_name: str | None) -> Float[Array, "*groups dim dim"]:
    """[..., dim, dim] of z [batch, ..., dim] over the global batch, with divisor batch - 1."""
    rows = ops.num_rows(z, axis_name)
    z = ops.center(z, axis_name)
    return rows / (rows - 1) * ops.second_moment(z, z, axis_name)


def _off_diagonal_squares(c: Float[Array, "*groups dim dim"]) -> Float[Array, "*groups"]:
    """sum_{i != j} c_ij^2 of each matrix of [..., dim, dim]."""
    # Masked, not sum(c**2) - sum(diagonal**2): near the optimum the two sums agree in all but their last bits. In
    # float32 their difference is 16 % off at dim 2048 with |c_ij| = 1e-5.
    return jnp.sum(jnp.where(jnp.eye(c.shape[-1], dtype=bool), 0.0, c) ** 2, axis=(-2, -1))


def _covariance_penalty(z: Float[Array, "batch *groups dim"], axis_name: str | None) -> Float[Array, ""]:
    """vicreg's c of z, averaged over the groups."""
    return jnp.mean(_off_diagonal_squares(_covariance(z, axis_name))) / z.shape[-1]


def _hinge(z: Float[Array, "batch *groups dim"], axis_name: str | None) -> Float[Array, ""]:
    """vicreg's v of z, averaged over the groups."""
    rows = ops.num_rows(z, axis_name)
    variance = ops.global_mean(jnp.mean(ops.center(z, axis_name) ** 2, axis=0), axis_name) * rows / (rows - 1)
    return jnp.mean(nn.relu(1.0 - jnp.sqrt(variance + 1e-4)))

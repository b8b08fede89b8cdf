"""Losses that compare the distribution of embeddings with a normal one along random directions."""

# pyright: reportUnknownMemberType=false

import jax.numpy as jnp
from jax import lax
from jax.scipy.special import ndtri
from jaxtyping import Array, Float

from ssl_jax import ops


def visreg(
    views: Float[Array, "views batch dim"],
    directions: Float[Array, "dim directions"],
    *,
    scale: float = 1.0,
    shape: float = 1.0,
    center: float = 1.0,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Variance and sketching: each view's embeddings have mean 0 and deviation 1, and look normal along any direction.

    With m and s the mean and the biased deviation of a view's dimension over the global batch,
    loss = scale * the mean of (s - 1)^2 + center * the mean of m^2 + shape * the mean over views, directions and
    i = 1..batch of (u_i - q_i)^2. u are the projections of (z - m) / s on a direction of length 1, sorted. q_i is the
    quantile of a normal distribution at i / (batch + 1). So the third term is the squared sliced Wasserstein distance.
    There, s has no gradient: the term changes the shape alone.

    Args:
      views: [views, batch, dim] projections; row i of all shows image i.
      directions: [dim, directions], columns of any length > 0: draws of N(0, I), new in every step and the same on
        every device. Each device takes its share of them if the devices divide their number.
      scale, shape, center: >= 0.
      axis_name: mapped axis that the batch is sharded over; None if views holds the whole batch.

    Returns: float32 scalar >= 0; its mean over devices is the loss of the whole batch.
    Raises: ValueError if views is not [views, batch, dim], directions not [dim, directions], or the global batch has
      fewer than two rows.
    Source: Wu et al. 2026, arXiv:2606.02572, eq. 1-6, as in the authors' code. There 1e-6 is added to s; here s is at
      least 1e-6.
    """
    if views.ndim != 3 or directions.ndim != 2 or len(directions) != views.shape[2]:
        raise ValueError(
            f"views must be [views, batch, dim] and directions [dim, directions], got {views.shape}, {directions.shape}"
        )
    z = jnp.moveaxis(views.astype(jnp.float32), 0, 1)  # [batch, views, dim]
    rows = ops.num_rows(z, axis_name)
    if rows < 2:
        raise ValueError(f"the loss compares images; give at least two, got {views.shape}")
    mean = ops.global_mean(jnp.mean(z, axis=0), axis_name)
    centered = z - mean
    variance = ops.global_mean(jnp.mean(centered**2, axis=0), axis_name)
    deviation = jnp.sqrt(jnp.maximum(variance, 1e-12))
    standard = ops.all_rows(centered / lax.stop_gradient(deviation), axis_name)
    units = _own_share(ops.normalize(directions.T).T, axis_name)
    projections = jnp.sort(jnp.einsum("bvd,dk->bvk", standard, units, precision="highest"), axis=0)
    quantiles = ndtri(jnp.arange(1, rows + 1, dtype=jnp.float32) / (rows + 1))
    distance = jnp.mean((projections - quantiles[:, None, None]) ** 2)
    return scale * jnp.mean((deviation - 1.0) ** 2) + center * jnp.mean(mean**2) + shape * distance


def _own_share(directions: Float[Array, "dim directions"], axis_name: str | None) -> Float[Array, "dim own"]:
    """This device's part of the directions; all of them where the devices do not divide them."""
    devices = 1 if axis_name is None else lax.axis_size(axis_name)
    if axis_name is None or directions.shape[1] % devices:
        return directions
    count = directions.shape[1] // devices
    return lax.dynamic_slice_in_dim(directions, lax.axis_index(axis_name) * count, count, axis=1)

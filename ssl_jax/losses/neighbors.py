"""Losses of methods that find the images most like an image, among past embeddings."""

# pyright: reportUnknownMemberType=false

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ssl_jax import ops


def mean_shift(
    prediction: Float[Array, "batch dim"],
    target: Float[Array, "batch dim"],
    rows: Float[Array, "size dim"],
    *,
    neighbors: int = 5,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Mean shift: a prediction moves towards the mean of its target's nearest neighbors.

    The neighbors of target b are the rows with the largest cosine to it. loss = the mean over the batch and the
    neighbors n of |p_b - n|^2 = 2 - 2 cos(prediction_b, n), with p_b the normalized prediction. Where `rows` hold the
    target itself, it is the first neighbor; with neighbors=1 this is BYOL's loss.

    Args:
      prediction, target: [batch, dim], any scale; row i of both shows image i. The gradient flows to the prediction
        alone.
      rows: [size, dim] past and present targets, any scale, the same on every device.
      neighbors: the paper's k, from 1 to size.
      axis_name: not used, because the mean needs no other device's rows; all losses have it.

    Returns: float32 scalar in [0, 4]; its mean over devices is the loss of the whole batch.
    Raises: ValueError if prediction and target are not [batch, dim] of one shape, rows not [size, dim] of that dim, or
      neighbors not in 1..size.
    Source: Koohpayegani, Tejankar & Pirsiavash 2021, arXiv:2105.07269, section 3, and the authors' code.
    """
    ops.check_rows(prediction=prediction, target=target)
    if rows.ndim != 2 or rows.shape[1] != target.shape[1]:
        raise ValueError(f"rows must be [size, dim] of the target's dim, got {rows.shape} for targets {target.shape}")
    if not 1 <= neighbors <= len(rows):
        raise ValueError(f"neighbors must be from 1 to the number of rows, {len(rows)}, got {neighbors}")
    target, rows = lax.stop_gradient((ops.normalize(target), ops.normalize(rows)))
    nearest = lax.top_k(jnp.matmul(target, rows.T, precision="highest"), neighbors)[1]  # [batch, neighbors]
    mean = jnp.mean(rows[nearest], axis=1)
    return 2.0 - 2.0 * jnp.mean(jnp.sum(ops.normalize(prediction) * mean, axis=-1))


def all4one_features(
    z1: Float[Array, "batch dim"],
    z2: Float[Array, "batch dim"],
    t1: Float[Array, "batch dim"],
    t2: Float[Array, "batch dim"],
    *,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """All4One's loss of features: each dimension goes with the same one of the other view's target, and no other.

    Let C [dim, dim] have the cosines of the columns of t1 with those of z2, and D those of t2 with those of z1. Columns
    are over the global batch and not centered. loss = (sqrt(the mean of (1 - C_ii)^2 and (1 - D_ii)^2) + sqrt(the mean
    of C_ij^2 and D_ij^2 over i != j)) / 2. At least 1e-12 is under each root, so that its gradient is finite.

    Args:
      z1, z2: [batch, dim] projections of two views, any scale; row i of both shows image i.
      t1, t2: [batch, dim] targets from the same views, any scale. The gradient flows to them, too: where they are a
        teacher's, the caller stops it.
      axis_name: mapped axis that the batch is sharded over; None if the arrays hold the whole batch.

    Returns: float32 scalar >= 0, the same on every device. Its root makes a small loss count more than its square.
    Raises: ValueError if the arrays are not [batch, dim] of one shape with at least two rows and two dimensions.
    Source: Estepa et al. 2023, arXiv:2303.09417, section 3.3, as in the authors' code.
    """
    if any(x.shape != z1.shape for x in (z2, t1, t2)) or z1.ndim != 2 or z1.shape[1] < 2:
        shapes = [x.shape for x in (z1, z2, t1, t2)]
        raise ValueError(f"all four must be [batch, dim] of one shape with at least two dimensions, got {shapes}")
    z1, z2, t1, t2 = (_unit_columns(x, axis_name) for x in (z1, z2, t1, t2))
    rows = ops.num_rows(z1, axis_name)
    c = rows * jnp.stack([ops.second_moment(t1, z2, axis_name), ops.second_moment(t2, z1, axis_name)])
    dim = z1.shape[1]
    on = jnp.mean((1.0 - c.diagonal(axis1=1, axis2=2)) ** 2)
    # Masked, not the sum of all squares minus the diagonal's, see `barlow_twins`.
    off = jnp.sum(jnp.where(jnp.eye(dim, dtype=bool), 0.0, c) ** 2) / (2 * dim * (dim - 1))
    return (jnp.sqrt(jnp.maximum(on, 1e-12)) + jnp.sqrt(jnp.maximum(off, 1e-12))) / 2


def _unit_columns(z: Float[Array, "batch dim"], axis_name: str | None) -> Float[Array, "batch dim"]:
    """Columns of unit length over the global batch, in float32; a column without any entry above 1e-12 stays near 0."""
    z = z.astype(jnp.float32)
    # Divided by the largest entry first, as in ops.normalize.
    largest = lax.stop_gradient(jnp.max(jnp.abs(z), axis=0))
    largest = largest if axis_name is None else lax.pmax(largest, axis_name)
    z = z / jnp.maximum(largest, 1e-12)
    return z * lax.rsqrt(jnp.maximum(ops.global_sum(jnp.sum(z * z, axis=0), axis_name), 1.0))

"""PCA with whitening on the device, for methods that cluster features of a backbone."""

# pyright: reportUnknownMemberType=false

import functools
from typing import cast

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from ssl_jax.methods.toolkit.kmeans import in_blocks
from ssl_jax.ops import global_sum, normalize, vary_like

FLAT = 1e-6  # share of the largest variance below which a direction is rounding, and gives 0


@functools.partial(jax.jit, static_argnames=("dim", "block_size", "axis_name"))
def whitened(
    points: Float[Array, "points features"],
    dim: int,
    *,
    valid: Bool[Array, " points"] | None = None,
    block_size: int = 4096,
    axis_name: str | None = None,
) -> Float[Array, "points {dim}"]:
    """The points in their `dim` directions of largest variance, each scaled to variance 1; then as unit vectors.

    Args:
      points: [points, features], any scale.
      dim: number of directions, at most the features.
      valid: [points], True for points whose mean and covariance are taken. None: all.
      block_size: number of points that are projected at a time.
      axis_name: mapped axis that points and valid are divided over; None if they are whole.

    Returns: float32 [points, dim]. A direction with less than 1e-6 of the largest variance is 0 everywhere.
    Raises: ValueError if the shapes do not agree or dim is out of range.
    Source: DeepCluster, Caron et al. 2018, arXiv:1807.05520, section 3.3 (faiss's PCAMatrix with eigen_power -0.5).
    """
    if points.ndim != 2 or not 1 <= dim <= points.shape[1]:
        raise ValueError(f"{dim} directions need points [points, features] of at least as many, got {points.shape}")
    if valid is not None and valid.shape != points.shape[:1]:
        raise ValueError(f"valid must be [points], got {valid.shape} for {points.shape}")
    valid = jnp.full(len(points), True) if valid is None else valid
    block_size = min(block_size, len(points))
    blocks, weights = (in_blocks(x.astype(jnp.float32), block_size) for x in (points, valid))
    count = jnp.maximum(global_sum(jnp.sum(weights), axis_name), 1.0)
    mean = global_sum(jnp.einsum("bn,bnd->d", weights, blocks, precision="highest"), axis_name) / count

    def add(total: Array, block: tuple[Array, Array]) -> tuple[Array, None]:
        rows, weight = block
        rows = (rows - mean) * weight[:, None]
        return total + jnp.matmul(rows.T, rows, precision="highest"), None

    zeros = vary_like(jnp.zeros((points.shape[1],) * 2), blocks)
    total = global_sum(lax.scan(add, zeros, (blocks, weights))[0], axis_name)
    variances, directions = cast(tuple[Array, Array], jnp.linalg.eigh(total / count))  # in ascending order
    variances, directions = variances[::-1][:dim], directions[:, ::-1][:, :dim]
    flat = variances <= FLAT * variances[0]
    directions *= jnp.where(flat, 0.0, lax.rsqrt(jnp.where(flat, 1.0, variances)))

    def project(rows: Float[Array, "block features"]) -> Float[Array, "block dim"]:
        return normalize(jnp.matmul(rows - mean, directions, precision="highest"))

    return cast(Array, lax.map(project, blocks)).reshape(-1, dim)[: len(points)]

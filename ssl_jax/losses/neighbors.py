"""Losses of an image and the images most like it, found among past embeddings."""

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

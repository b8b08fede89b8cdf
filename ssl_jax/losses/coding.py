"""Losses of coding lengths: the bits that a batch's embeddings take, up to a distortion, should be many."""

# pyright: reportUnknownMemberType=false

import jax.numpy as jnp
from jaxtyping import Array, Float

from ssl_jax import ops


def mec(
    prediction: Float[Array, "batch dim"],
    target: Float[Array, "batch dim"],
    *,
    distortion: float | Float[Array, ""] = 64.0,
    order: int = 4,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Maximum entropy coding: the coding length of the predictions, seen together with their targets, is large.

    loss = -1 / (c * batch) * sum_{k = 1}^{order} (-1)^(k + 1) / k * tr((c P T^T)^k), with normalized rows P and T
    [batch, dim], and c = dim / (batch * distortion). The sum is the series of log det(I + c P T^T). It converges where
    no eigenvalue of c P T^T is above 1 in size: not where a few directions have most of the embeddings, unless the
    distortion is large. With order=1 the loss is the mean of -cos(prediction, target).

    Args:
      prediction, target: [batch, dim], any scale; row i of both shows image i. The gradient flows to both: where the
        target is a teacher's, the caller stops it.
      distortion: > 0, the paper's epsilon squared. A traced scalar if it changes.
      order: terms of the series, at least 1.
      axis_name: mapped axis that the batch is sharded over; None if prediction and target are the whole batch.

    Returns: float32 scalar, the same on every device.
    Raises: ValueError if prediction and target are not [batch, dim] of one shape, or order < 1.
    Source: Liu et al. 2022, arXiv:2210.11464, eq. 2-4, scaled as in the authors' code: by 1 / (c * batch), in place of
      the paper's (batch + dim) / 2.
    """
    ops.check_rows(prediction=prediction, target=target)
    if order < 1:
        raise ValueError(f"order must be at least 1, got {order}")
    prediction, target = ops.normalize(prediction), ops.normalize(target)
    rows, dim = ops.num_rows(prediction, axis_name), prediction.shape[1]
    scale = dim / (rows * distortion)
    # The powers of P T^T and of P^T T have the same traces; the smaller matrix is taken.
    if dim <= rows:
        product = rows * ops.second_moment(prediction, target, axis_name)
    else:
        product = jnp.matmul(
            ops.all_rows(prediction, axis_name), ops.all_rows(target, axis_name).T, precision="highest"
        )
    product *= scale
    power, total = product, jnp.trace(product)
    for k in range(2, order + 1):
        total -= (-1.0) ** k / k * jnp.sum(power * product.T)  # the trace of power @ product
        power = jnp.matmul(power, product, precision="highest")
    return -total / (scale * rows)

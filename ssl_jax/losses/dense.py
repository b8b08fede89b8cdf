"""Losses of the positions of feature maps."""

# pyright: reportUnknownMemberType=false

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ssl_jax import ops


def pixpro(
    prediction: Float[Array, "batch positions dim"],
    target: Float[Array, "batch others dim"],
    near: Bool[Array, "batch positions others"],
    *,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Pixel-to-propagation consistency: a position's prediction agrees with the other view's targets nearby.

    loss = -2 times the mean over the batch of the mean of cos(prediction_s, target_t) over the pairs (s, t) that are
    near. An image without such a pair adds 0.

    Args:
      prediction: [batch, positions, dim] of one view's feature map, any scale; row i of all arrays is of image i.
      target: [batch, others, dim] of the other view's, any scale. The gradient flows to both: where the target is a
        teacher's, the caller stops it.
      near: [batch, positions, others], True for the pairs that lie at the same place of the image.
      axis_name: not used, because the mean needs no other device's rows; all losses have it.

    Returns: float32 scalar in [-2, 2]; its mean over devices is the loss of the whole batch.
    Raises: ValueError if the shapes do not agree.
    Source: Xie et al. 2020, arXiv:2011.10043, eq. 5 for one of its two directions, times the authors' code's 2.
    """
    shapes = prediction.shape, target.shape, near.shape
    if (
        prediction.ndim != 3
        or prediction.shape[::2] != target.shape[::2]
        or near.shape != shapes[0][:2] + shapes[1][1:2]
    ):
        raise ValueError(
            "prediction must be [batch, positions, dim], target [batch, others, dim] and near [batch, positions, "
            f"others], got {shapes}"
        )
    cosine = jnp.einsum("bsd,btd->bst", ops.normalize(prediction), ops.normalize(target), precision="highest")
    pairs = jnp.sum(near, axis=(1, 2), dtype=jnp.float32)
    return -2.0 * jnp.mean(jnp.sum(jnp.where(near, cosine, 0.0), axis=(1, 2)) / jnp.maximum(pairs, 1.0))

"""Losses of the positions of feature maps, and of their segments."""

# pyright: reportUnknownMemberType=false

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ssl_jax import ops
from ssl_jax.losses._logsumexp import logsumexp


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


def detcon(
    predictions: tuple[Float[Array, "batch segments dim"], Float[Array, "batch segments dim"]],
    targets: tuple[Float[Array, "batch segments dim"], Float[Array, "batch segments dim"]],
    ids: tuple[Int[Array, "batch segments"], Int[Array, "batch segments"]],
    *,
    temperature: float = 0.1,
    axis_name: str | None = None,
    chunk_size: int | None = None,
) -> Float[Array, ""]:
    """DetCon: each segment of a view finds the same segment of the other view, among all segments of all images.

    Let s be a row of one view's predictions, P(s) the other view's targets of the same image with the same id, and C(s)
    all targets of the global batch of both views, except for those of the own view of the same image with the same id.
    loss_s = w_s * mean over p in P(s) of -log[exp(cos(s, p) / temperature) / sum_{c in C(s)} exp(cos(s, c) /
    temperature)]. w_s is 1 / (rows of the same view and image with the same id), or 0 if P(s) is empty. The loss is the
    mean over batch and segments, added over both views.

    Args:
      predictions, targets: of the first and the second view, [batch, segments, dim], any scale; row i of all arrays is
        of image i. The gradient flows to both: where the targets are a teacher's, the caller stops it.
      ids: of the two views, [batch, segments]: the segment of the image in a row. Several rows may have the same one.
      temperature: > 0.
      axis_name: mapped axis that the batch is sharded over; None if the arrays hold the whole batch.
      chunk_size: as for `nt_xent`.

    Returns: float32 scalar >= 0; its mean over devices is the loss of the whole batch.
    Raises: ValueError if the shapes do not agree, or chunk_size < 1.
    Source: Henaff et al. 2021, arXiv:2103.10957, eq. 3, as in the authors' code (byol_nce_detcon).
    """
    shapes = [x.shape for x in (*predictions, *targets)]
    if len(set(shapes)) > 1 or len(shapes[0]) != 3 or any(x.shape != shapes[0][:2] for x in ids):
        raise ValueError(
            "predictions and targets must be [batch, segments, dim] of one shape and ids [batch, segments], got "
            f"{shapes} and {[x.shape for x in ids]}"
        )
    batch, segments, dim = shapes[0]
    first, second = (ops.normalize(t) for t in targets)
    loss = jnp.zeros(())
    for prediction, own, other, own_ids, other_ids in (
        (predictions[0], first, second, ids[0], ids[1]),
        (predictions[1], second, first, ids[1], ids[0]),
    ):
        anchors = ops.normalize(prediction) / temperature
        keys = jnp.concatenate([other, own]).reshape(-1, dim)
        same = own_ids[:, :, None] == own_ids[:, None]
        index = ops.first_row(keys, axis_name) + batch * segments + jnp.arange(batch * segments)
        # No key has the index -1.
        excluded = jnp.where(same, index.reshape(batch, 1, segments), -1).reshape(-1, segments)
        candidates = logsumexp(anchors.reshape(-1, dim), keys, excluded, chunk_size, axis_name)
        positive = own_ids[:, :, None] == other_ids[:, None]
        found = jnp.sum(positive, axis=-1, dtype=jnp.float32)
        scores = jnp.einsum("bsd,btd->bst", anchors, other, precision="highest")
        score = jnp.sum(jnp.where(positive, scores, 0.0), axis=-1) / jnp.maximum(found, 1.0)
        weight = (found > 0) / jnp.sum(same, axis=-1, dtype=jnp.float32)
        loss += jnp.mean(weight * (candidates.reshape(batch, segments) - score))
    return loss


def patch_kernel_alignment(
    prediction: Float[Array, "batch positions dim"],
    target: Float[Array, "batch positions dim2"],
    valid: Bool[Array, "batch positions"] | None = None,
    *,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Patch kernel alignment: positions that are alike in the target are alike in the prediction.

    loss = the mean over the images of 1 - <K, L> / (|K| |L|), where K and L [positions, positions] are the dot products
    of an image's predictions and of its targets, each minus their mean over the positions: 1 minus the centered kernel
    alignment. It does not change if features are scaled or rotated. Images with fewer than two valid positions do not
    count; an image whose positions are all equal adds 1.

    Args:
      prediction, target: [batch, positions, dim], position by position of the same place; any scale, and each its own
        dim. The gradient flows to both: where the target is a teacher's, the caller stops it.
      valid: [batch, positions], False for positions to be left out; None: all count.
      axis_name: mapped axis that the batch is sharded over; None if the arrays hold the whole batch.

    Returns: float32 scalar in [0, 1]; its mean over devices is the loss of the whole batch.
    Raises: ValueError if the shapes do not agree.
    Source: Patch-Level Kernel Alignment for Dense Self-Supervised Learning, 2025, arXiv:2509.05606, as in lightly's
      PatchKernelAlignmentLoss; lightly's floor under the two norms is 1e-3 for features of any scale.
    """
    valid = jnp.ones(prediction.shape[:2], bool) if valid is None else valid
    if prediction.ndim != 3 or prediction.shape[:2] != target.shape[:2] or valid.shape != prediction.shape[:2]:
        raise ValueError(
            "prediction and target must be [batch, positions, dim] and valid [batch, positions], got "
            f"{prediction.shape}, {target.shape}, {valid.shape}"
        )
    kernels = (_centered_kernel(z, valid) for z in (prediction, target))
    alignment = jnp.sum(next(kernels) * next(kernels), axis=(1, 2))
    return ops.mean_where(1.0 - alignment, jnp.sum(valid, axis=1) >= 2, axis_name)


def _centered_kernel(
    z: Float[Array, "batch positions dim"], valid: Bool[Array, "batch positions"]
) -> Float[Array, "batch positions positions"]:
    """Dot products of each image's valid rows minus their mean, 0 for the others, scaled to a norm of 1."""
    # Divided by the largest entry first, as in ops.normalize; once more after centering, so that squares do not vanish.
    z, where = z.astype(jnp.float32), valid[..., None]
    z = _by_largest(jnp.where(where, z, 0.0))
    mean = jnp.sum(z, axis=1, keepdims=True) / jnp.maximum(jnp.sum(where, axis=1, keepdims=True), 1)
    z = _by_largest(jnp.where(where, z - mean, 0.0))
    kernel = jnp.einsum("bsd,btd->bst", z, z, precision="highest")
    return kernel * lax.rsqrt(jnp.maximum(jnp.sum(kernel**2, axis=(1, 2), keepdims=True), 1e-12))


def _by_largest(z: Float[Array, "batch positions dim"]) -> Float[Array, "batch positions dim"]:
    largest = lax.stop_gradient(jnp.max(jnp.abs(z), axis=(1, 2), keepdims=True))
    return z / jnp.maximum(largest, 1e-12)

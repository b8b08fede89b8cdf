"""Losses of coding lengths: the bits that a batch's embeddings take, up to a distortion, should be many."""

# pyright: reportUnknownMemberType=false

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ssl_jax import ops
from ssl_jax.losses.spread import half_log_det, smaller_gram


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


def simdino(
    student: Float[Array, "views batch dim"],
    teacher: Float[Array, "teacher_views batch dim"],
    *,
    eps: float = 0.05,
    invariance: float = 1.0,
    smooth: bool = True,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """SimDINO: a student's crops agree with the teacher's other crops, and the images' coding rate is large.

    loss = -invariance * the mean over the batch and all pairs of crops t != s of cos(teacher_t, student_s)
    - (dim + batch) / (dim * batch) * mean_v R(z_v), where R(z) = 1/2 log det(I + dim / (batch * eps) * z^T z) is the
    coding rate, as in `emp_ssl`. z_v are the student's normalized embeddings of crop v, for the crops that the teacher
    sees, too; with `smooth` their mean with the teacher's.

    Args:
      student: [views, batch, dim], any scale; the teacher's crops first. Row i of all shows image i.
      teacher: [teacher_views, batch, dim], any scale: crop v of both is the same. The gradient flows to both: the
        caller stops the teacher's.
      eps: > 0, the distortion that the coding rate allows.
      invariance: >= 0.
      smooth: whether z_v is the mean of student and teacher.
      axis_name: mapped axis that the batch is sharded over; None if the arrays hold the whole batch.

    Returns: float32 scalar; its mean over devices is the loss of the whole batch.
    Raises: ValueError if student and teacher are not [views, batch, dim] of one batch and dim, or student has fewer
      than two views, or fewer than teacher.
    Source: Wu et al. 2025, arXiv:2502.10385, section 3, and the authors' code, which has the factor, eps not squared,
      and cosines for half of the squared distances.
    """
    if student.ndim != 3 or teacher.ndim != 3 or student.shape[1:] != teacher.shape[1:]:
        raise ValueError(
            f"student and teacher must be [views, batch, dim] of one batch and dim, got {student.shape}, "
            f"{teacher.shape}"
        )
    if len(student) < max(2, len(teacher)):
        raise ValueError(
            f"student must have at least two views, and those of the teacher, got {student.shape}, {teacher.shape}"
        )
    student, teacher = ops.normalize(student), ops.normalize(teacher)
    cosines = jnp.einsum("tbd,sbd->ts", teacher, student, precision="highest") / student.shape[1]
    likeness = jnp.mean(cosines, where=~jnp.eye(*cosines.shape, dtype=bool))
    z = student[: len(teacher)]
    z = jnp.moveaxis((z + teacher) / 2.0 if smooth else z, 0, 1)  # [batch, views, dim]
    rows, dim = ops.num_rows(z, axis_name), z.shape[-1]
    grams = smaller_gram(z, axis_name)
    rates = ops.map_matrices(half_log_det, jnp.eye(grams.shape[-1]) + dim / (rows * eps) * grams)
    return -invariance * likeness - (dim + rows) / (dim * rows) * jnp.mean(rates)


def corinfomax(
    z1: Float[Array, "batch dim"],
    z2: Float[Array, "batch dim"],
    mean: Float[Array, "2 dim"],
    covariance: Float[Array, "2 dim dim"],
    *,
    attraction: float = 2000.0,
    memory: float = 0.1,
    eps: float = 1e-8,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], Float[Array, "2 dim"], Float[Array, "2 dim dim"]]:
    """Correlative information maximization: two views agree, and each view's covariance has a large determinant.

    With normalized rows, each view's running mean m = memory * mean + (1 - memory) * the batch's mean, and its running
    covariance R = memory * covariance + (1 - memory) * the batch's mean of (z_b - m)(z_b - m)^T, are over the global
    batch. loss = attraction * the mean over batch and dim of (z1 - z2)^2 - the sum over the views of
    log det(R + eps I) / dim. The gradient flows through the batch's part of m and R. A millionth of R's mean diagonal
    is added to eps, because of float32's rounding.

    Args:
      z1, z2: [batch, dim] projections of two views, any scale; row i of both shows image i. The global batch should
        have at least dim rows: else R is close to singular, unless the memory is long.
      mean, covariance: [2, dim] and [2, dim, dim], m and R of both views of the step before; at first zeros and
        identities.
      attraction: the paper's alpha, > 0.
      memory: share of the old statistics, in [0, 1): the authors' forgetting factor.
      eps: > 0.
      axis_name: mapped axis that the batch is sharded over; None if z1, z2 are the whole batch.

    Returns: (loss, m, R). The loss is a float32 scalar; its mean over devices is the loss of the whole batch. m and R
      are float32, without gradient, the same on every device.
    Raises: ValueError if z1 and z2 are not [batch, dim] of one shape, or mean and covariance not of that dim.
    Source: Ozsoy et al. 2022, arXiv:2209.07999, eq. 4-7, and the authors' code, which computes in float64.
    """
    ops.check_rows(z1=z1, z2=z2)
    dim = z1.shape[1]
    if mean.shape != (2, dim) or covariance.shape != (2, dim, dim):
        raise ValueError(
            f"mean and covariance must be [2, dim] and [2, dim, dim] for z1 of dim {dim}, got {mean.shape}, "
            f"{covariance.shape}"
        )
    z = ops.normalize(jnp.stack([z1, z2], axis=1))  # [batch, views, dim]
    mean, covariance = mean.astype(jnp.float32), covariance.astype(jnp.float32)
    mean = memory * mean + (1.0 - memory) * ops.global_mean(jnp.mean(z, axis=0), axis_name)
    centered = z - mean
    covariance = memory * covariance + (1.0 - memory) * ops.second_moment(centered, centered, axis_name)
    ridge = eps + 1e-6 * lax.stop_gradient(jnp.mean(covariance.diagonal(axis1=1, axis2=2), axis=1))
    log_dets = 2.0 * ops.map_matrices(half_log_det, covariance + ridge[:, None, None] * jnp.eye(dim))
    distance = jnp.mean((z[:, 0] - z[:, 1]) ** 2)
    loss = attraction * distance - jnp.sum(log_dets) / dim
    return loss, lax.stop_gradient(mean), lax.stop_gradient(covariance)

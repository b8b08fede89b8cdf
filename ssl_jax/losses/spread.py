"""Losses that spread a batch's embeddings out, measured by their moments, norm, entropy, volume or distribution."""

# pyright: reportUnknownMemberType=false

from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from ssl_jax import ops


def tico(
    z1: Float[Array, "batch dim"],
    z2: Float[Array, "batch dim"],
    covariance: Float[Array, "dim dim"],
    *,
    beta: float = 0.9,
    rho: float = 8.0,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], Float[Array, "dim dim"]]:
    """Transformation invariance and covariance contrast: embeddings avoid the directions of recent embeddings.

    loss = mean_b (1 - z1_b . z2_b) + rho * mean_b z1_b^T C z1_b, with normalized rows. The running second moment
    C = beta * covariance + (1 - beta) * mean_b z1_b z1_b^T is over the global batch and carries no gradient.

    Args:
      z1, z2: [batch, dim] projections of two views, any scale; row i of both shows image i. The gradient flows to both:
        where z2 is a teacher's, the caller stops it.
      covariance: [dim, dim], C of the step before, zeros at first.
      beta: decay of C, in [0, 1].
      rho: >= 0.
      axis_name: mapped axis that the batch is sharded over; None if z1, z2 are the whole batch.

    Returns: (loss, C). The loss is a float32 scalar >= 0; its mean over devices is the loss of the whole batch.
      C [dim, dim] is float32, the same on every device.
    Raises: ValueError if z1 and z2 are not [batch, dim] of one shape or covariance is not [dim, dim].
    Source: Zhu et al. 2022, arXiv:2206.10698, section 3, with C constant. Ports differ on whether the gradient flows
      through the batch's own part of C.
    """
    ops.check_rows(z1=z1, z2=z2)
    if covariance.shape != (z1.shape[1], z1.shape[1]):
        raise ValueError(f"covariance must be [dim, dim] for z1 of dim {z1.shape[1]}, got {covariance.shape}")
    z1, z2 = (ops.normalize(z) for z in (z1, z2))
    moment = ops.second_moment(z1, z1, axis_name)
    covariance = lax.stop_gradient(beta * covariance.astype(jnp.float32) + (1.0 - beta) * moment)
    contrast = jnp.sum(jnp.matmul(z1, covariance, precision="highest") * z1, axis=-1)
    return jnp.mean(1.0 - jnp.sum(z1 * z2, axis=-1) + rho * contrast), covariance


def mmcr(
    online: Float[Array, "batch views dim"],
    momentum: Float[Array, "batch views dim"] | None = None,
    *,
    weight: float = 5e-3,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Maximum manifold capacity: an image's views are close together, and the images' centroids in all directions.

    loss = -|C|_* + weight * mean_b |Z_b|_*. Z_b [views, dim] are image b's normalized embeddings. Row b of
    C [batch, dim] is their mean, not normalized again. |.|_* is the nuclear norm, the sum of the singular values. A
    momentum encoder's embeddings count as further views.

    Args:
      online: [batch, views, dim] projections, any scale.
      momentum: the same views by the momentum encoder; None without one. The gradient flows to both: the caller stops
        the momentum encoder's.
      weight: the paper's lambda, >= 0.
      axis_name: mapped axis that the batch is sharded over; None if the arrays hold the whole batch.

    Returns: float32 scalar, at least -batch; its mean over devices is the loss of the whole batch.
    Raises: ValueError if online is not [batch, views, dim], or momentum has another shape.
    Source: Yerxa et al. 2023, arXiv:2303.03307, section 2, and the authors' code, which normalizes.
    """
    if online.ndim != 3 or (momentum is not None and momentum.shape != online.shape):
        raise ValueError(
            f"online and momentum must be [batch, views, dim] of one shape, "
            f"got {online.shape}, {None if momentum is None else momentum.shape}"
        )
    z = ops.normalize(online if momentum is None else jnp.concatenate([online, momentum], axis=1))
    between = _nuclear_norm(jnp.mean(z, axis=1), axis_name)
    if weight == 0.0:  # the authors' weight; saves an eigendecomposition for each image
        return -between
    return weight * jnp.mean(ops.map_matrices(_nuclear_norm, z)) - between


def _nuclear_norm(z: Float[Array, "rows dim"], axis_name: str | None = None) -> Float[Array, ""]:
    """The sum of the singular values of `z`, whose rows may be sharded over devices.

    Each singular value is the length of z along an eigenvector of z^T z, or of z z^T if that is smaller. With constant
    eigenvectors the gradient is sum_i u_i v_i^T, which is correct, and finite at every rank. The roots of the
    eigenvalues would lose half of the digits, and their gradient is infinite at 0.
    """
    if ops.num_rows(z, axis_name) < z.shape[1]:
        z, axis_name = ops.all_rows(z, axis_name).T, None
    gram = ops.global_sum(jnp.matmul(z.T, z, precision="highest"), axis_name)
    _, eigenvectors = cast(tuple[Array, Array], jnp.linalg.eigh(lax.stop_gradient(gram)))
    lengths = jnp.sum(jnp.matmul(z, eigenvectors, precision="highest") ** 2, axis=0)
    squares = ops.global_sum(lengths, axis_name)
    return jnp.sum(jnp.sqrt(jnp.maximum(squares, 1e-12)))


def frossl(
    views: Float[Array, "views batch dim"], *, invariance: float = 1.0, axis_name: str | None = None
) -> Float[Array, ""]:
    """Frobenius norm minimization: every view's covariance has a flat spectrum, and the views agree.

    loss = sum_v [2 log |C_v|_F + invariance * views * dim * mean (z_v - m)^2]. Each column of z_v [batch, dim] is
    scaled to length 1 over the global batch. m is the mean of the views. C_v is z_v^T z_v divided by its trace, which
    is the number of columns that are not zero.

    Args:
      views: [views, batch, dim] projections, any scale of each dimension; row i of all shows image i.
      invariance: weight of the second term, >= 0; the paper's is 1.
      axis_name: mapped axis that the batch is sharded over; None if views holds the whole batch.

    Returns: float32 scalar >= -views * log(min(batch, dim)); its mean over devices is the loss of the whole batch.
    Raises: ValueError if views is not [views, batch, dim] with at least two views.
    Source: Skean et al. 2023, arXiv:2310.02903, section 4. The columns are normalized as in the authors' code.
    """
    _check_views(views)
    z = jnp.moveaxis(views.astype(jnp.float32), 0, 1)  # [batch, views, dim]
    squares = ops.num_rows(z, axis_name) * ops.global_mean(jnp.mean(z**2, axis=0), axis_name)
    z = z * lax.rsqrt(jnp.maximum(squares, 1e-24))
    gram = smaller_gram(z, axis_name)
    # The floors are for columns of zeros: without them, the sum of squares is at least 1 / min(batch, dim).
    trace = jnp.maximum(jnp.trace(gram, axis1=1, axis2=2), 1e-12)
    frobenius = jnp.log(jnp.maximum(jnp.sum((gram / trace[:, None, None]) ** 2, axis=(1, 2)), 1e-12))
    num_views, _, dim = views.shape
    disagreement = jnp.mean((z - jnp.mean(z, axis=1, keepdims=True)) ** 2, axis=(0, 2))
    return jnp.sum(frobenius + invariance * num_views * dim * disagreement)


def emp_ssl(
    views: Float[Array, "views batch dim"],
    *,
    eps: float = 0.2,
    invariance: float = 200.0,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Total coding rate: the images' embeddings fill as much volume as they can, while an image's patches agree.

    loss = -mean_v R(z_v) - invariance * mean_{v, b} cos(z_vb, m_b), with normalized rows and m the mean of the views.
    R(z) = 1/2 log det(I + dim / (batch * eps) * z^T z) is the coding rate, which should be large.

    Args:
      views: [views, batch, dim] projections of patches, any scale; row i of all shows image i.
      eps: > 0, the distortion that the coding rate allows.
      invariance: >= 0.
      axis_name: mapped axis that the batch is sharded over; None if views holds the whole batch.

    Returns: float32 scalar; its mean over devices is the loss of the whole batch.
    Raises: ValueError if views is not [views, batch, dim] with at least two views.
    Source: Tong et al. 2023, arXiv:2304.03977, section 2; eps is not squared, as in the authors' code. The paper
      maximizes its objective; this loss is the negative of it.
    """
    _check_views(views)
    z = ops.normalize(jnp.moveaxis(views, 0, 1))  # [batch, views, dim]
    rows, _, dim = ops.num_rows(z, axis_name), *z.shape[1:]
    gram = smaller_gram(z, axis_name)
    coding_rate = ops.map_matrices(half_log_det, jnp.eye(gram.shape[-1]) + dim / (rows * eps) * gram)
    mean_view = ops.normalize(jnp.mean(z, axis=1, keepdims=True))
    return -jnp.mean(coding_rate) - invariance * jnp.mean(jnp.sum(z * mean_view, axis=-1))


def half_log_det(matrix: Float[Array, "dim dim"]) -> Float[Array, ""]:
    """Half of the log of the determinant of a positive definite matrix."""
    factor = cast(Array, jnp.linalg.cholesky(matrix))
    return jnp.sum(jnp.log(factor.diagonal()))


def hypersphere(
    z1: Float[Array, "batch dim"],
    z2: Float[Array, "batch dim"],
    *,
    queue: Float[Array, "size dim"] | None = None,
    t: float = 1.0,
    weight: float = 1.0,
    alpha: float = 2.0,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Alignment and uniformity: an image's views are at one point of the sphere, and the images are all over it.

    loss = mean_b |z1_b - z2_b|^alpha + weight * (u(z1) + u(z2)) / 2, with normalized rows. u(z) is the log of the mean
    of exp(-t |z_b - z_c|^2) over all pairs b < c of the global batch.
    With a queue, loss = mean_b |z1_b - z2_b|^alpha + weight * u(z1), and u's mean also includes all pairs of a row of
    z1 and a row of the queue.

    Args:
      z1, z2: [batch, dim] projections of two views, any scale; row i of both shows image i.
      queue: [size, dim], rows of length 1, the same on every device: earlier z2, made by a teacher. With a queue,
        neither the queue nor z2 gets a gradient.
      t: > 0, the inverse width of the kernel; the authors' code has 2.
      weight: weight of the uniformity, >= 0.
      alpha: > 0.
      axis_name: mapped axis that the batch is sharded over; None if z1, z2 are the whole batch.

    Returns: float32 scalar, at least -4 t weight; its mean over devices is the loss of the whole batch.
    Raises: ValueError if z1 and z2 are not [batch, dim] of one shape, or the global batch has fewer than two rows.
    Source: Wang & Isola 2020, arXiv:2005.10242, section 4.1; with a queue: equation 18.
    """
    ops.check_rows(z1=z1, z2=z2)
    if ops.num_rows(z1, axis_name) < 2:
        raise ValueError(f"the loss compares pairs of images; give at least two images, got {z1.shape}")
    z1, z2 = (ops.normalize(z) for z in (z1, z2))
    if queue is not None:
        z2, queue = lax.stop_gradient((z2, queue))
    # The floor is for alpha < 2, where the gradient is infinite at equal views. It is far below rounding's 1e-7.
    alignment = jnp.mean(jnp.maximum(jnp.sum((z1 - z2) ** 2, axis=-1), 1e-12) ** (alpha / 2.0))
    if queue is None:
        uniformity = sum(_log_mean_kernel(z, t, axis_name) for z in (z1, z2)) / 2.0
    else:
        uniformity = _log_mean_kernel(z1, t, axis_name, queue)
    return alignment + weight * uniformity


def _log_mean_kernel(
    z: Float[Array, "batch dim"],
    t: float,
    axis_name: str | None,
    queue: Float[Array, "size dim"] | None = None,
) -> Float[Array, ""]:
    """u of `hypersphere`, for rows of length 1."""
    others = ops.all_rows(z, axis_name)
    own = ops.first_row(z, axis_name) + jnp.arange(len(z))
    pair = own[:, None] != jnp.arange(len(others))
    # Each pair of the batch appears twice, once for each of its rows, but counts once.
    of_rows = _log_kernel_sum(z, others, t, where=pair) - np.log(2.0)
    count = len(others) * (len(others) - 1) / 2
    if queue is not None:
        of_rows = jnp.logaddexp(of_rows, _log_kernel_sum(z, queue, t))
        count += len(others) * len(queue)
    return ops.global_logsumexp(of_rows, axis_name) - np.log(count)


def _log_kernel_sum(
    z: Float[Array, "batch dim"],
    others: Float[Array, "others dim"],
    t: float,
    where: Bool[Array, "batch others"] | None = None,
) -> Float[Array, "batch"]:
    """For each row of z the log of the sum over others of exp(-t |z - other|^2); all rows have length 1."""
    exponents = t * (2.0 * jnp.matmul(z, others.T, precision="highest") - 2.0)
    return jax.nn.logsumexp(exponents, axis=1, where=where)


def sigreg(
    z: Float[Array, "batch dim"],
    directions: Float[Array, "dim directions"],
    *,
    knots: int = 17,
    t_max: float = 3.0,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Sketched isotropic Gaussian regularization: along every direction the embeddings look like draws of N(0, 1).

    For the batch's projections u on one direction, the Epps-Pulley statistic compares characteristic functions:
    T = batch * the integral over t in [-t_max, t_max] of |mean_b exp(i t u_b) - exp(-t^2 / 2)|^2 exp(-t^2 / 2). The
    integral is computed by the trapezoidal rule at `knots` points of [0, t_max], and doubled. The loss is the mean of T
    over the directions. For normal embeddings it is 1.05 on average at any batch size; for others it grows with the
    batch size.

    Args:
      z: [batch, dim] projections of one view; location and scale matter.
      directions: [dim, directions], columns of any length > 0: draws of N(0, I), new in every step and the same on
        every device.
      knots: >= 2.
      t_max: > 0.
      axis_name: mapped axis that the batch is sharded over; None if z is the whole batch.

    Returns: float32 scalar >= 0, the same on every device.
    Raises: ValueError if z is not [batch, dim], directions not [dim, directions], or knots < 2.
    Source: Balestriero & LeCun 2025, arXiv:2511.08544, section 4, with the authors' code's integral.
    """
    if z.ndim != 2 or directions.ndim != 2 or len(directions) != z.shape[1]:
        raise ValueError(f"z must be [batch, dim] and directions [dim, directions], got {z.shape}, {directions.shape}")
    if knots < 2:
        raise ValueError(f"knots must be at least 2, got {knots}")
    t = np.linspace(0.0, t_max, knots, dtype=np.float32)
    gaussian = np.exp(-(t**2) / 2.0)  # the characteristic function of N(0, 1), and the integral's window
    weights = np.full(knots, 2.0 * t_max / (knots - 1), np.float32) * gaussian
    weights[[0, -1]] /= 2.0
    u = jnp.matmul(z.astype(jnp.float32), ops.normalize(directions.T).T, precision="highest")

    # Computed knot by knot, and again in the backward pass: this holds [batch, directions], not that for every knot.
    @jax.checkpoint
    def characteristic_function(t: Float[Array, ""]) -> Float[Array, "2 directions"]:
        return jnp.stack([jnp.mean(jnp.cos(t * u), axis=0), jnp.mean(jnp.sin(t * u), axis=0)])

    own = cast(Array, lax.map(characteristic_function, jnp.asarray(t)))
    empirical = ops.global_mean(own, axis_name)
    real, imaginary = empirical[:, 0] - gaussian[:, None], empirical[:, 1]  # [knots, directions]
    errors = jnp.mean(real**2 + imaginary**2, axis=1)
    return ops.num_rows(z, axis_name) * jnp.sum(weights * errors)


def smaller_gram(z: Float[Array, "batch *groups dim"], axis_name: str | None) -> Float[Array, "*groups m m"]:
    """The smaller of z z^T and z^T z, over the global batch.

    Their nonzero eigenvalues are the same.
    """
    rows = ops.num_rows(z, axis_name)
    if z.shape[-1] <= rows:
        return rows * ops.second_moment(z, z, axis_name)
    z = ops.all_rows(z, axis_name)
    return jnp.einsum("b...d,c...d->...bc", z, z, precision="highest")


def _check_views(views: Float[Array, "..."]) -> None:
    if views.ndim != 3 or len(views) < 2:
        raise ValueError(f"views must be [views, batch, dim] with at least two views, got {views.shape}")

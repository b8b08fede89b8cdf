"""Self-distillation: a student predicts the output of a slowly moving teacher for the same image."""

from typing import cast

import jax
import jax.numpy as jnp
from jax import lax, nn
from jaxtyping import Array, Bool, Float

from ssl_jax import ops
from ssl_jax.losses.clustering import sinkhorn


def negative_cosine(
    prediction: Float[Array, "batch dim"], target: Float[Array, "batch dim"], *, axis_name: str | None = None
) -> Float[Array, ""]:
    """The mean over the batch of -cos(prediction, target).

    Args:
      prediction, target: [batch, dim], any scale; row i of both shows image i. The gradient flows to both: where the
        target is a teacher's, the caller stops it.
      axis_name: not used, because the mean needs no other device's rows; all losses have it.

    Returns: float32 scalar in [-1, 1]; its mean over devices is the loss of the whole batch.
    Raises: ValueError if prediction and target are not [batch, dim] of one shape.
    Source: Chen & He 2020, arXiv:2011.10566, eq. 1; 2 + 2 times this is Grill et al. 2020, arXiv:2006.07733, eq. 2.
    """
    ops.check_rows(prediction=prediction, target=target)
    return -jnp.mean(jnp.sum(ops.normalize(prediction) * ops.normalize(target), axis=-1))


def feature_distillation(
    prediction: Float[Array, "batch *places dim"],
    target: Float[Array, "batch *places dim"],
    *,
    cosine: float = 0.5,
    smooth_l1: float = 0.5,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """A student predicts a frozen teacher's features: their direction, and each of their entries.

    The mean over images and places of cosine * (1 - cos(prediction, target)) + smooth_l1 * s. With d the absolute
    difference of two entries, s is the mean over entries of d^2 / 2 where d < 1, and of d - 1/2 elsewhere. Smooth L1
    tells small from large differences only if the target's entries are around 1: standardize it first.

    Args:
      prediction, target: [batch, dim] of whole images, or [batch, ..., dim] of places. The gradient flows to both: the
        caller stops it where the target is a teacher's.
      cosine, smooth_l1: weights of the two terms, >= 0.
      axis_name: not used, because the mean needs no other device's rows; all losses have it.

    Returns: float32 scalar >= 0, 0 where prediction and target are equal and no row is zero; its mean over devices is
      the loss of the whole batch.
    Raises: ValueError if prediction and target are not [batch, ..., dim] of one shape.
    Source: UNIC, Sariyildiz et al. 2024, arXiv:2408.05088, with the weights of the authors' code; cosine and smooth L1
      with other weights in AM-RADIO, Ranzinger et al. 2023, arXiv:2312.06709.
    """
    if prediction.ndim < 2 or prediction.shape != target.shape:
        raise ValueError(
            f"prediction and target must be [batch, ..., dim] of one shape, got {prediction.shape}, {target.shape}"
        )
    prediction, target = prediction.astype(jnp.float32), target.astype(jnp.float32)
    likeness = jnp.mean(jnp.sum(ops.normalize(prediction) * ops.normalize(target), axis=-1))
    d = jnp.abs(prediction - target)
    near = jnp.minimum(d, 1.0)  # the square of a far d would overflow
    return cosine * (1.0 - likeness) + smooth_l1 * jnp.mean(near * near / 2.0 + (d - near))


def dino(
    student: Float[Array, "student_views batch classes"],
    teacher: Float[Array, "teacher_views batch classes"],
    center: Float[Array, "classes"],
    *,
    student_temperature: float = 0.1,
    teacher_temperature: float | Float[Array, ""] = 0.04,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Each view of the student predicts the teacher's class of every other view. The classes are not labels.

    `cross_view` with the targets softmax((teacher - center) / teacher_temperature). Centering keeps one class from
    taking all images; the low temperature keeps the classes from becoming equally likely.

    Args:
      student: [student_views, batch, classes] logits.
      teacher: [teacher_views, batch, classes] logits of the student's first views; they carry no gradient.
      center: [classes], the running mean of the teacher's logits over the global batch and its views; no gradient.
      student_temperature: > 0.
      teacher_temperature: > 0, below the student's; a traced scalar where it follows a schedule.
      axis_name: mapped axis that the batch is sharded over; None if the arrays hold the whole batch.

    Returns: float32 scalar, at least the mean entropy of the targets; its mean over devices is the loss of the whole
      batch. log(classes) if the student finds all classes equally likely.
    Raises: ValueError if the shapes do not agree, or student and teacher have the same single view.
    Source: Caron et al. 2021, arXiv:2104.14294, eq. 3 and algorithm 1.
    """
    targets = centered(teacher, center, teacher_temperature)
    return cross_view(student, targets, temperature=student_temperature, axis_name=axis_name)


def cross_view(
    student: Float[Array, "student_views batch classes"],
    targets: Float[Array, "target_views batch classes"],
    *,
    temperature: float = 0.1,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """`dino` for targets that are probabilities already, as DINOv2 makes them with `sinkhorn`.

    The mean over all pairs of a target view t and a student view s != t, and over the batch, of
    -sum_k targets[t]_k log softmax(student[s] / temperature)_k.

    Args:
      student: [student_views, batch, classes] logits.
      targets: [target_views, batch, classes] probabilities for the student's first views; they carry no gradient.
      temperature: > 0.
      axis_name: not used, because the mean needs no other device's rows; all losses have it.

    Returns, Raises: as `dino`.
    Source: Caron et al. 2021, arXiv:2104.14294, eq. 3; Oquab et al. 2023, arXiv:2304.07193, section 4.
    """
    if student.ndim != 3 or student.shape[1:] != targets.shape[1:]:
        raise ValueError(
            f"student and teacher must be [views, batch, classes] of one batch, got {student.shape}, {targets.shape}"
        )
    if len(student) == len(targets) == 1:
        raise ValueError("student and teacher have the same single view; give a second view to predict")
    targets = lax.stop_gradient(targets.astype(jnp.float32))
    return ops.cross_view_entropy(targets, ops.log_softmax(student, temperature))


def ibot(
    student: Float[Array, "batch tokens classes"],
    teacher: Float[Array, "batch tokens classes"],
    center: Float[Array, "classes"],
    mask: Bool[Array, "batch tokens"],
    *,
    student_temperature: float = 0.1,
    teacher_temperature: float | Float[Array, ""] = 0.04,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """The student sees an image with masked patches and predicts the teacher's class of each masked patch.

    `masked_patches` with the targets softmax((teacher - center) / teacher_temperature).

    Args:
      student, teacher: [batch, tokens, classes] logits of the patches of one view. The teacher sees all patches and
        carries no gradient.
      center: [classes], the running mean of the teacher's patch logits over the global batch; no gradient.
      mask: [batch, tokens], True where the student's patch was masked.
      student_temperature: > 0.
      teacher_temperature: > 0, below the student's; a traced scalar where it follows a schedule.
      axis_name: mapped axis that the batch is sharded over; None if the arrays hold the whole batch.

    Returns: float32 scalar >= 0; its mean over devices is the loss of the whole batch.
    Raises: ValueError if the shapes do not agree.
    Source: Zhou et al. 2021, arXiv:2111.07832, L_MIM of section 3.1. Divided by the image's number of masked patches,
      as in the authors' code.
    """
    targets = centered(teacher, center, teacher_temperature)
    return masked_patches(student, targets, mask, temperature=student_temperature, axis_name=axis_name)


def masked_patches(
    student: Float[Array, "batch tokens classes"],
    targets: Float[Array, "batch tokens classes"],
    mask: Bool[Array, "batch tokens"],
    *,
    temperature: float = 0.1,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """`ibot` for targets that are probabilities already, as DINOv2 makes them with `sinkhorn`.

    -sum_k targets_k log softmax(student / temperature)_k, averaged over the masked patches of each image, then over
    the batch. An image without masked patches counts as 0.

    Args:
      student: [batch, tokens, classes] logits.
      targets: [batch, tokens, classes] probabilities; they carry no gradient.
      mask: [batch, tokens], True where the student's patch was masked.
      temperature: > 0.
      axis_name: not used, because the mean needs no other device's rows; all losses have it.

    Returns, Raises: as `ibot`.
    Source: Zhou et al. 2021, arXiv:2111.07832, section 3.1; Oquab et al. 2023, arXiv:2304.07193, section 4.
    """
    if student.ndim != 3 or student.shape != targets.shape or mask.shape != student.shape[:2]:
        raise ValueError(
            "student and teacher must be [batch, tokens, classes] of one shape, mask [batch, tokens], "
            f"got {student.shape}, {targets.shape}, {mask.shape}"
        )
    targets = lax.stop_gradient(targets.astype(jnp.float32))
    patches = jnp.where(mask, ops.cross_entropy(targets, student, temperature), 0.0)
    return jnp.mean(jnp.sum(patches, axis=-1) / jnp.maximum(jnp.sum(mask, axis=-1), 1))


def centered(
    teacher: Float[Array, "*batch classes"],
    center: Float[Array, "classes"],
    temperature: float | Float[Array, ""],
) -> Float[Array, "*batch classes"]:
    """softmax((teacher - center) / temperature): the targets of `dino` and `ibot`, in float32.

    Raises: ValueError if center is not [classes].
    """
    if center.shape != teacher.shape[-1:]:
        raise ValueError(
            f"center must be [classes] for the teacher's logits [..., classes], got {center.shape}, {teacher.shape}"
        )
    return ops.softmax(teacher.astype(jnp.float32) - center.astype(jnp.float32), temperature)


def koleo(z: Float[Array, "batch dim"], *, group: int = 0, axis_name: str | None = None) -> Float[Array, ""]:
    """Spreads a batch over the sphere: minus the mean log distance to the nearest neighbor.

    loss = -mean_i log(|x_i - x_n(i) + eps| + eps), with x the normalized rows of z and eps = 1e-8. n(i) is the other
    row of the global batch, or of the group, with the largest cosine to x_i. The choice of n(i) carries no gradient;
    x_n(i) does.

    Args:
      z: [batch, dim], any scale; one row for each image. At least two rows over all devices.
      group: number of consecutive rows of the global batch that form a group, on whichever devices. Neighbors are found
        within the group only. 0: all rows are one group. In the authors' code a group is a device's rows: 12 to 64
        images.
      axis_name: mapped axis that the batch is sharded over; None if z is the whole batch. Rows are sent between
        devices only if a group is on several.

    Returns: float32 scalar, at least -log 2, at most -log(1e-8) = 18.4; its mean over devices is the loss of the whole
      batch.
    Raises: ValueError if z is not [batch, dim], the global batch has a single row, or it does not consist of whole
      groups of at least two rows.
    Source: Sablayrolles et al. 2018, arXiv:1806.03198, L_KoLeo; normalization and eps as in the code of Oquab et al.
      2023, arXiv:2304.07193.
    """
    if z.ndim != 2 or ops.num_rows(z, axis_name) < 2:
        raise ValueError(f"z must be [batch, dim] with at least two rows, so that each has a neighbor, got {z.shape}")
    rows = ops.num_rows(z, axis_name)
    if group and (group < 2 or rows % group):
        raise ValueError(f"group must be 0, or at least 2 and a divisor of the global batch's {rows} rows, got {group}")
    if group and len(z) % group == 0:
        axis_name = None  # each device has all neighbors of its rows
    eps = 1e-8
    x = ops.normalize(z)
    others = ops.all_rows(x, axis_name)
    cosine = lax.stop_gradient(jnp.matmul(x, others.T, precision="highest"))
    own = ops.first_row(x, axis_name) + jnp.arange(len(x))
    all_ = jnp.arange(len(others))
    neighbors = all_ != own[:, None]
    if group:
        neighbors &= all_ // group == own[:, None] // group
    nearest = jnp.argmax(jnp.where(neighbors, cosine, -2.0), axis=-1)
    # eps inside, too: the difference of duplicates is 0, where the norm has no gradient.
    distance = cast(Array, jnp.linalg.norm(x - others[nearest] + eps, axis=-1))
    return -jnp.mean(jnp.log(distance + eps))


def gram(
    student: Float[Array, "batch patches dim"],
    teacher: Float[Array, "batch patches teacher_dim"],
    *,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Two patches of an image should be as alike for the student as they are for the teacher, whatever their features.

    The mean over images and all pairs of patches p, q of (cos(s_p, s_q) - cos(t_p, t_q))^2: the mean squared entry of
    the difference of two Gram matrices, those of the normalized features of an image's patches.

    Args:
      student, teacher: [batch, patches, dim] features of the patches, any scale; patch p of both shows the same place.
        Their dims may differ. The teacher carries no gradient.
      axis_name: not used, because the mean needs no other device's rows; all losses have it.

    Returns: float32 scalar in [0, 4]; its mean over devices is the loss of the whole batch.
    Raises: ValueError if student and teacher are not [batch, patches, dim] of the same images and patches.
    Source: Simeoni et al. 2025, DINOv3, arXiv:2508.10104, eq. 2; a mean over pairs as in the authors' code, where the
      paper has the sum.
    """
    if student.ndim != 3 or student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            "student and teacher must be [batch, patches, dim] of the same images and patches, got "
            f"{student.shape}, {teacher.shape}"
        )
    of_student, of_teacher = (
        jnp.matmul(x, x.swapaxes(1, 2), precision="highest")
        for x in (ops.normalize(student), ops.normalize(lax.stop_gradient(teacher)))
    )
    return jnp.mean(jnp.square(of_student - of_teacher))


def msn(
    anchors: Float[Array, "anchors dim"],
    targets: Float[Array, "batch dim"],
    prototypes: Float[Array, "prototypes dim"],
    *,
    temperature: float = 0.1,
    sharpen: float = 0.25,
    iterations: int = 3,
    me_max: float = 1.0,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Masked views should get the same prototypes as the teacher's unmasked view, and all prototypes should be used.

    With s(x) = softmax(cos(x, prototypes) / temperature):
    loss = mean_{i,v} CE(q_i, s(anchor_vi)) + me_max * (log K - H(mean_{i,v} s(anchor_vi))). The targets are
    q = sinkhorn(s(target)^(1 / sharpen), rows normalized). The means and Sinkhorn are over the global batch. Sinkhorn
    works on these probabilities themselves, not on their exp.

    Args:
      anchors: [views * batch, dim], all rows of the first view, then of the second, ...; any scale.
      targets: [batch, dim], the teacher's; any scale. They carry no gradient.
      prototypes: [K, dim], any scale; their gradient comes from the anchors' assignments.
      temperature: > 0. sharpen: in (0, 1], the targets' temperature relative to the anchors'.
      iterations: Sinkhorn's, at least 1.
      me_max: weight >= 0 of the mean entropy, which keeps one prototype from taking all.
      axis_name: mapped axis that the batch is sharded over: each device has its rows of every view. None if the
        arrays hold the whole batch.

    Returns: float32 scalar >= 0; its mean over devices is the loss of the whole batch.
    Raises: ValueError if the shapes do not agree, or iterations < 1.
    Source: Assran et al. 2022, arXiv:2204.07141, section 3; normalization and Sinkhorn as in the authors' code.
    """
    return pmsn(
        anchors,
        targets,
        prototypes,
        temperature=temperature,
        sharpen=sharpen,
        iterations=iterations,
        me_max=me_max,
        power=0.0,  # a uniform pi: then KL is log K - H
        axis_name=axis_name,
    )


def pmsn(
    anchors: Float[Array, "anchors dim"],
    targets: Float[Array, "batch dim"],
    prototypes: Float[Array, "prototypes dim"],
    *,
    temperature: float = 0.1,
    sharpen: float = 0.25,
    iterations: int = 3,
    me_max: float = 1.0,
    power: float = 0.25,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """`msn` for data with unequal numbers of images per concept: the use of the prototypes should follow a power law.

    KL(m || pi) replaces log K - H(m). m is the mean assignment of the anchors, and pi_k is proportional to k^-power for
    k = 1, ..., K.

    Args:
      power: >= 0. At 0 this is `msn`.
      The others: as for `msn`.

    Returns, Raises: as `msn`.
    Source: Assran et al. 2022, arXiv:2210.07277. KL has the direction that generalizes MSN's term; other code has
      KL(pi || m).
    """
    if anchors.ndim != 2 or targets.ndim != 2 or len(anchors) % len(targets):
        raise ValueError(
            f"anchors must be [views * batch, dim] for targets [batch, dim], got {anchors.shape}, {targets.shape}"
        )
    if prototypes.ndim != 2 or not anchors.shape[1] == targets.shape[1] == prototypes.shape[1]:
        raise ValueError(
            "anchors, targets and prototypes must be rows of one dim, "
            f"got {anchors.shape}, {targets.shape}, {prototypes.shape}"
        )
    prototypes = ops.normalize(prototypes)
    anchor_logits, target_logits = (
        jnp.matmul(ops.normalize(rows), prototypes.T, precision="highest") / temperature for rows in (anchors, targets)
    )
    # p^(1 / sharpen), normalized, is softmax(logits / sharpen). The codes carry no gradient.
    log_p = nn.log_softmax(target_logits / sharpen)
    codes = sinkhorn(log_p, epsilon=1.0, iterations=iterations, axis_name=axis_name)
    codes = jnp.tile(codes, (len(anchors) // len(targets), 1))  # the same for every view
    used = ops.global_mean(jnp.mean(nn.softmax(anchor_logits), axis=0), axis_name)
    prior = nn.softmax(-power * jnp.log(1.0 + jnp.arange(len(prototypes))))
    divergence = jnp.sum(jax.scipy.special.rel_entr(used, prior))
    return jnp.mean(ops.cross_entropy(codes, anchor_logits)) + me_max * divergence

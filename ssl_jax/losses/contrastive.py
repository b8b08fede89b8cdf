"""Contrastive losses: an embedding should be more similar to its positive than to others."""

# pyright: reportUnknownMemberType=false

import math

import jax
import jax.numpy as jnp
from jax import lax, nn
from jaxtyping import Array, Float, Int

from ssl_jax import ops
from ssl_jax.losses._logsumexp import MASKED, logsumexp, matmul


def nt_xent(
    z1: Float[Array, "batch dim"],
    z2: Float[Array, "batch dim"],
    *,
    temperature: float = 0.1,
    axis_name: str | None = None,
    chunk_size: int | None = None,
) -> Float[Array, ""]:
    """Normalized temperature-scaled cross entropy: each embedding finds its other view among all others.

    For each of the 2N anchors i with positive p(i), and s the cosine similarity:
    loss_i = -s(i, p(i)) / temperature + log sum_{k != i} exp(s(i, k) / temperature), where k runs over the 2N - 1 other
    embeddings of both views. The loss is the mean over the anchors. Identical embeddings give the chance level,
    log(2N - 1).

    Args:
      z1, z2: [batch, dim] projections of two views, any scale; row i of both shows image i.
      temperature: > 0. 0.1 for ImageNet at batch 4096, 0.5 for CIFAR-10 in the paper.
      axis_name: mapped axis that the batch is sharded over; None if z1, z2 are the whole batch.
      chunk_size: None computes the [2 batch, 2 global batch] similarities at once. Otherwise they are computed for this
        many keys at a time, and again in the backward pass: the same numbers in less memory. The keys are then not
        gathered from all devices, but passed from device to device.

    Returns: float32 scalar >= 0; its mean over devices is the loss of the whole batch.
    Raises: ValueError if z1 and z2 are not [batch, dim] of one shape, or chunk_size < 1.
    Source: Chen et al. 2020, arXiv:2002.05709, eq. 1 and algorithm 1. The authors' code adds the two
      directions, each averaged over the batch: twice this.
    """
    anchors, own, _ = _both_views(z1, z2, axis_name)
    others = logsumexp(anchors / temperature, anchors, own[:, None], chunk_size, axis_name)
    return jnp.mean(others - _cosine_of_views(anchors) / temperature)


def dcl(
    z1: Float[Array, "batch dim"],
    z2: Float[Array, "batch dim"],
    *,
    temperature: float = 0.1,
    axis_name: str | None = None,
    chunk_size: int | None = None,
) -> Float[Array, ""]:
    """Decoupled contrastive learning: `nt_xent` without the positive among the candidates.

    For each of the 2N anchors i with positive p(i), and s the cosine similarity:
    loss_i = -s(i, p(i)) / temperature + log sum_k exp(s(i, k) / temperature), where k runs over the 2N - 2 embeddings
    of the other images. The loss is the mean over the anchors. So a positive that is already near does not weaken the
    gradient from the negatives.

    Args:
      z1, z2: [batch, dim] projections of two views, any scale; row i of both shows image i. At least two images.
      temperature: > 0.
      axis_name: mapped axis that the batch is sharded over; None if z1, z2 are the whole batch.
      chunk_size: as for `nt_xent`.

    Returns: float32 scalar, which may be negative; its mean over devices is the loss of the whole batch.
    Raises: ValueError if z1 and z2 are not [batch, dim] of one shape, show a single image, or chunk_size < 1.
    Source: Yeh et al. 2021, arXiv:2110.06848, section 3.
    """
    return _decoupled(z1, z2, 1.0, temperature, axis_name, chunk_size)


def dclw(
    z1: Float[Array, "batch dim"],
    z2: Float[Array, "batch dim"],
    *,
    temperature: float = 0.1,
    sigma: float = 0.5,
    axis_name: str | None = None,
    chunk_size: int | None = None,
) -> Float[Array, ""]:
    """`dcl` with a weight on each positive, larger where the two views of the image are less similar.

    The first term is -w_i s(i, p(i)) / temperature, with w_i = 2 - N softmax_i(s(i, p(i)) / sigma). The softmax is over
    the N images of the global batch, so the weights' mean is 1. The weights carry no gradient.

    Args:
      sigma: > 0; the larger it is, the more equal the weights.
      The others: as for `dcl`.

    Returns, Raises: as `dcl`.
    Source: Yeh et al. 2021, arXiv:2110.06848, section 3: negative von Mises-Fisher weights.
    """
    ops.check_rows(z1=z1, z2=z2)
    alike = lax.stop_gradient(jnp.sum(ops.normalize(z1) * ops.normalize(z2), axis=-1)) / sigma
    share = jnp.exp(alike - ops.global_logsumexp(alike, axis_name))
    weight = 2.0 - ops.num_rows(z1, axis_name) * share
    return _decoupled(z1, z2, jnp.tile(weight, 2), temperature, axis_name, chunk_size)


def supcon(
    features: Float[Array, "batch views dim"],
    labels: Int[Array, "batch"],
    *,
    temperature: float = 0.1,
    base_temperature: float | None = None,
    axis_name: str | None = None,
    chunk_size: int | None = None,
) -> Float[Array, ""]:
    """Supervised contrastive: each embedding finds all others of its class among all others.

    For each anchor i, P(i) has the other views of the image and all views of other images of its class; s is the cosine
    similarity. loss_i = mean over p in P(i) of -log[exp(s(i, p) / temperature) / sum_{k != i} exp(s(i, k) /
    temperature)], or 0 if P(i) is empty. The loss is the mean over the anchors. With all labels -1 and two views it is
    `nt_xent`.

    Args:
      features: [batch, views, dim] projections, any scale.
      labels: [batch] classes; below 0 for an unlabeled image, whose positives are its own other views only.
      temperature: > 0.
      base_temperature: if given, the loss is multiplied by temperature / base_temperature. 0.07 in the authors' code.
      axis_name: mapped axis that the batch is sharded over; None if the arrays hold the whole batch.
      chunk_size: as for `nt_xent`.

    Returns: float32 scalar >= 0; its mean over devices is the loss of the whole batch.
    Raises: ValueError if features are not [batch, views, dim] and labels [batch], or chunk_size < 1.
    Source: Khosla et al. 2020, arXiv:2004.11362, eq. 2 (L_out), with a mean over the anchors in place of the sum. It is
      also StableRep's multi-positive cross entropy (Tian et al. 2023, arXiv:2306.00984, eq. 1-2), whose labels say
      which caption an image was made from; its temperature is 0.1, too.
    """
    anchors, own, group = _anchors_of_classes(features, labels, axis_name)
    others = logsumexp(anchors / temperature, anchors, own[:, None], chunk_size, axis_name)
    # Positives are summed as vectors, class by class. This needs no matrix of all pairs.
    keys = ops.all_rows(anchors, axis_name)
    members = jax.ops.segment_sum(jnp.ones(len(keys), jnp.float32), group, len(keys))[group[own]]
    sums = jax.ops.segment_sum(keys, group, len(keys))[group[own]]
    positives = members - 1.0
    mean_positive = jnp.sum(anchors * (sums - anchors), axis=-1) / jnp.maximum(positives, 1.0) / temperature
    loss = jnp.mean(jnp.where(positives > 0, others - mean_positive, 0.0))
    return loss if base_temperature is None else loss * temperature / base_temperature


def supcon_inside(
    features: Float[Array, "batch views dim"],
    labels: Int[Array, "batch"],
    *,
    temperature: float = 0.1,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """`supcon` with the positives summed inside the logarithm, so that one near positive suffices.

    loss_i = -log[sum over p in P(i) of exp(s(i, p) / temperature) / sum_{k != i} exp(s(i, k) / temperature)], 0 if
    P(i) is empty. The loss is the mean over the anchors. This function builds the matrix of all pairs.

    Args, Raises: as `supcon`.
    Returns: float32 scalar >= 0; its mean over devices is the loss of the whole batch.
    Source: Khosla et al. 2020, arXiv:2004.11362, eq. 3 (L_in) without its 1 / |P(i)|, as in solo-learn.
    """
    anchors, own, group = _anchors_of_classes(features, labels, axis_name)
    keys = ops.all_rows(anchors, axis_name)
    logits = matmul(anchors, keys.T) / temperature
    other = own[:, None] != jnp.arange(len(keys))
    positive = other & (group[own][:, None] == group)
    nearest = nn.logsumexp(jnp.where(positive, logits, MASKED), axis=-1)
    others = nn.logsumexp(jnp.where(other, logits, MASKED), axis=-1)
    return jnp.mean(jnp.where(jnp.any(positive, axis=-1), others - nearest, 0.0))


def _anchors_of_classes(
    features: Float[Array, "..."], labels: Int[Array, "..."], axis_name: str | None
) -> tuple[Float[Array, "rows dim"], Int[Array, "rows"], Int[Array, "all_rows"]]:
    """(unit rows [batch * views, dim], their indices among the rows of all devices, the class of each row of all).

    The number of a class is the index of its first label in the sorted labels. An unlabeled image gets a label that no
    other image has.
    """
    if features.ndim != 3 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"features must be [batch, views, dim] and labels [batch], got {features.shape}, {labels.shape}"
        )
    _, views, dim = features.shape
    anchors = ops.normalize(features).reshape(-1, dim)
    own = ops.first_row(anchors, axis_name) + jnp.arange(len(anchors))
    labels = ops.all_rows(jnp.where(labels < 0, -1 - own[::views] // views, labels), axis_name)
    return anchors, own, jnp.repeat(jnp.searchsorted(jnp.sort(labels), labels), views)


def info_nce(
    query: Float[Array, "batch dim"],
    key: Float[Array, "batch dim"],
    *,
    queue: Float[Array, "queue dim"] | None = None,
    temperature: float = 0.07,
    axis_name: str | None = None,
    chunk_size: int | None = None,
) -> Float[Array, ""]:
    """Each query finds its key among other images' keys: those of a queue, or without one those of the batch.

    loss_i = -s(q_i, k_i) / temperature + log sum_c exp(s(q_i, c) / temperature), with s the cosine similarity. c runs
    over k_i and the queue (MoCo v1, v2), or over the keys of the global batch (MoCo v3). The loss is the mean over the
    batch. Its chance level is log(1 + queue), or log(batch).

    Args:
      query, key: [batch, dim], any scale; row i of both shows image i. The gradient flows to both: where the keys are
        a teacher's, the caller stops it.
      queue: [queue, dim] keys of earlier images, any scale, the same on every device.
      temperature: > 0. 0.07 in MoCo, 0.2 in MoCo v2.
      axis_name: mapped axis that the batch is sharded over; None if query and key are the whole batch.
      chunk_size: as for `nt_xent`.

    Returns: float32 scalar >= 0; its mean over devices is the loss of the whole batch.
    Raises: ValueError if query and key are not [batch, dim] of one shape, the queue not of their dim, or
      chunk_size < 1.
    Source: He et al. 2019, arXiv:1911.05722, eq. 1; Chen, Xie & He 2021, arXiv:2104.02057, eq. 1. The algorithm of the
      second paper multiplies the loss by 2 * temperature; this function does not.
    """
    ops.check_rows(query=query, key=key)
    query, key = ops.normalize(query) / temperature, ops.normalize(key)
    if queue is None:
        return _among_batch(query, key, axis_name, chunk_size)
    _check_queue(queue, key)
    negatives = logsumexp(query, ops.normalize(queue), None, chunk_size)
    return jnp.mean(nn.softplus(negatives - jnp.sum(query * key, axis=-1)))


def patch_info_nce(
    prediction: Float[Array, "rows dim"],
    target: Float[Array, "rows dim"],
    *,
    others: Float[Array, "more dim"] | None = None,
    axis_name: str | None = None,
    chunk_size: int | None = None,
) -> Float[Array, ""]:
    """CPC: each prediction finds the embedding of its patch among those of all patches, by dot product.

    loss_i = -p_i . t_i + log sum_c exp(p_i . t_c). c runs over the targets of the global batch and over `others`, so
    over patches elsewhere in the same image and in all other images. The loss is the mean over the rows. Its chance
    level is log(rows + more).

    Args:
      prediction, target: [rows, dim], such as the patches of all images at one offset, in the same order. Not
        normalized: the scale is learnt. The gradient flows to both.
      others: [more, dim], embeddings of patches that nothing predicts at this offset. The gradient flows to them.
      axis_name: mapped axis that the rows are sharded over; None if these are all rows.
      chunk_size: as for `nt_xent`.

    Returns: float32 scalar >= 0; its mean over devices is the loss of the whole batch.
    Raises: ValueError if prediction and target are not [rows, dim] of one shape, or chunk_size < 1.
    Source: van den Oord et al. 2018, arXiv:1807.03748, eq. 3-4; the prediction is W_k c_t.
    """
    ops.check_rows(prediction=prediction, target=target)
    prediction, target = prediction.astype(jnp.float32), target.astype(jnp.float32)
    return _among_batch(prediction, target, axis_name, chunk_size, others)


def dense_info_nce(
    query_map: Float[Array, "batch positions dim"],
    key_map: Float[Array, "batch positions dim"],
    query_features: Float[Array, "batch positions channels"],
    key_features: Float[Array, "batch positions channels"],
    queue: Float[Array, "queue dim"],
    *,
    temperature: float = 0.2,
    axis_name: str | None = None,
    chunk_size: int | None = None,
) -> Float[Array, ""]:
    """DenseCL: `info_nce` of each position. Its key is the position of the other view with the most similar features.

    The key of position s is key_map at argmax_t cos(query_features_s, key_features_t), over the positions t of the same
    image. The loss is the mean over batch and positions.

    Args:
      query_map, key_map: [batch, positions, dim] projections, any scale. The gradient flows to both: where the keys
        are a teacher's, the caller stops it.
      query_features, key_features: [batch, positions, channels] of the backbone, any scale. No gradient.
      queue: [queue, dim], the same on every device: keys of earlier images, each averaged over its positions.
      temperature: > 0.
      axis_name: mapped axis that the batch is sharded over; None if the arrays hold the whole batch.
      chunk_size: as for `nt_xent`; the similarities are [batch * positions, queue].

    Returns: float32 scalar >= 0; its mean over devices is the loss of the whole batch.
    Raises: ValueError if the shapes do not agree, or chunk_size < 1.
    Source: Wang et al. 2020, arXiv:2011.09157, eq. 2 and 4.
    """
    shapes = [x.shape for x in (query_map, key_map, query_features, key_features)]
    if query_map.ndim != 3 or shapes[0] != shapes[1] or shapes[2] != shapes[3] or shapes[2][:2] != shapes[0][:2]:
        raise ValueError(f"maps must be [batch, positions, dim], features [batch, positions, channels], got {shapes}")
    query_features, key_features = (ops.normalize(x) for x in (query_features, key_features))
    match = jnp.argmax(jnp.einsum("bsc,btc->bst", query_features, key_features, precision="highest"), axis=-1)
    key = jnp.take_along_axis(key_map, match[..., None], axis=1)
    query, key = (x.reshape(-1, x.shape[-1]) for x in (query_map, key))
    return info_nce(query, key, queue=queue, temperature=temperature, axis_name=axis_name, chunk_size=chunk_size)


def ressl(
    query: Float[Array, "batch dim"],
    key: Float[Array, "batch dim"],
    queue: Float[Array, "queue dim"],
    *,
    temperature: float = 0.1,
    target_temperature: float = 0.04,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Relational: a query should have the same similarities to the embeddings of a queue as its key.

    loss = mean over the batch of -sum_c t_c log softmax(s(q, queue) / temperature)_c, with
    t = softmax(s(k, queue) / target_temperature) and s the cosine similarity. The key itself is not a candidate.

    Args:
      query, key: [batch, dim], any scale; row i of both shows image i. The gradient flows to both: where the keys are
        a teacher's, the caller stops it.
      queue: [queue, dim] keys of earlier images, any scale, the same on every device.
      temperature: > 0.
      target_temperature: > 0 and below `temperature`: otherwise the embeddings collapse.
      axis_name: not used, because the mean needs no other device's rows; all losses have it.

    Returns: float32 scalar, at least the mean entropy of t; its mean over devices is the loss of the whole batch.
    Raises: ValueError if query and key are not [batch, dim] of one shape, or the queue not of their dim.
    Source: Zheng et al. 2021, arXiv:2107.09282, section 3.
    """
    ops.check_rows(query=query, key=key)
    _check_queue(queue, key)
    query, key, queue = (ops.normalize(x) for x in (query, key, queue))
    targets = ops.softmax(matmul(key, queue.T), target_temperature)
    return jnp.mean(ops.cross_entropy(targets, matmul(query, queue.T), temperature))


def nce(
    positive: Float[Array, "batch"],
    negatives: Float[Array, "batch negatives"],
    log_z: float | Float[Array, ""],
    *,
    num_images: int,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Noise-contrastive estimation: which image of a memory bank is this? (InstDisc, PIRL, CMC)

    With P = exp(score) / Z, K negatives and noise K / num_images, the loss is the mean over the batch of
    -log[P_positive / (P_positive + noise)] - sum over the negatives of log[noise / (P_negative + noise)].

    Args:
      positive: [batch], scores of embeddings with their own image's entry in the bank: cosine / temperature.
      negatives: [batch, K], scores with entries drawn uniformly with replacement. The own entry may be among them.
      log_z: the constant log Z; `nce_log_z` of the first batch.
      num_images: number of images in the bank.
      axis_name: not used, because the mean needs no other device's rows; all losses have it.

    Returns: float32 scalar >= 0; its mean over devices is the loss of the whole batch.
    Raises: ValueError if positive is not [batch] and negatives [batch, K].
    Source: Wu et al. 2018, arXiv:1805.01978, eq. 4-7. Without the authors' eps of 1e-7, which sigmoids do not need.
    """
    _check_scores(positive, negatives)
    shift = jnp.asarray(log_z, jnp.float32) + math.log(negatives.shape[1] / num_images)
    positive, negatives = (x.astype(jnp.float32) - shift for x in (positive, negatives))
    return jnp.mean(nn.softplus(-positive) + jnp.sum(nn.softplus(negatives), axis=-1))


def nce_log_z(
    positive: Float[Array, "batch"],
    negatives: Float[Array, "batch negatives"],
    *,
    num_images: int,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """The constant of `nce`: log of num_images times the mean of exp(score) over all scores of the global batch.

    Args, Raises: as for `nce`.
    Returns: float32 scalar, without gradient, the same on every device.
    Source: Wu et al. 2018, arXiv:1805.01978, eq. 8; positives included, as in the authors' code.
    """
    _check_scores(positive, negatives)
    scores = jnp.concatenate([positive[:, None], negatives], axis=1).astype(jnp.float32)
    rows = nn.logsumexp(lax.stop_gradient(scores), axis=1)
    count = ops.num_rows(scores, axis_name) * scores.shape[1]
    return ops.global_logsumexp(rows, axis_name) + math.log(num_images / count)


def _check_scores(positive: Float[Array, "..."], negatives: Float[Array, "..."]) -> None:
    if negatives.ndim != 2 or positive.shape != negatives.shape[:1]:
        raise ValueError(
            f"positive must be [batch] and negatives [batch, negatives], got {positive.shape}, {negatives.shape}"
        )


def _check_queue(queue: Float[Array, "..."], key: Float[Array, "batch dim"]) -> None:
    if queue.ndim != 2 or queue.shape[1] != key.shape[1]:
        raise ValueError(f"queue must be [queue, dim] of the keys' dim, got {queue.shape} for keys {key.shape}")


def _both_views(
    z1: Float[Array, "..."], z2: Float[Array, "..."], axis_name: str | None
) -> tuple[Float[Array, "rows dim"], Int[Array, "rows"], Int[Array, "rows"]]:
    """(normalized rows of z1, then of z2; their indices among the rows of all devices; those of their other views)."""
    ops.check_rows(z1=z1, z2=z2)
    anchors = ops.normalize(jnp.concatenate([z1, z2]))
    own = ops.first_row(anchors, axis_name) + jnp.arange(len(anchors))
    return anchors, own, jnp.roll(own, len(z1))


def _cosine_of_views(anchors: Float[Array, "rows dim"]) -> Float[Array, "rows"]:
    """Cosine of each row with its other view, for the anchors of `_both_views`."""
    return jnp.sum(anchors * jnp.roll(anchors, len(anchors) // 2, axis=0), axis=-1)


def _decoupled(
    z1: Float[Array, "batch dim"],
    z2: Float[Array, "batch dim"],
    weight: float | Float[Array, "2*batch"],
    temperature: float,
    axis_name: str | None,
    chunk_size: int | None,
) -> Float[Array, ""]:
    anchors, own, positive = _both_views(z1, z2, axis_name)
    if ops.num_rows(anchors, axis_name) < 4:
        raise ValueError(f"the loss contrasts different images; give at least two, got {z1.shape}")
    others = logsumexp(anchors / temperature, anchors, jnp.stack([own, positive], axis=1), chunk_size, axis_name)
    return jnp.mean(others - weight * _cosine_of_views(anchors) / temperature)


def _among_batch(
    query: Float[Array, "rows dim"],
    key: Float[Array, "rows dim"],
    axis_name: str | None,
    chunk_size: int | None,
    others: Float[Array, "more dim"] | None = None,
) -> Float[Array, ""]:
    """Mean of -query_i . key_i + log sum_c exp(query_i . key_c), where c runs over all devices' keys and others."""
    keys = key if others is None else jnp.concatenate([key, others.astype(jnp.float32)])
    candidates = logsumexp(query, keys, None, chunk_size, axis_name)
    return jnp.mean(candidates - jnp.sum(query * key, axis=-1))

"""Clustering losses: all views of an image should fall into one cluster, and all clusters should be used."""

# pyright: reportUnknownMemberType=false

import math

import jax
import jax.numpy as jnp
from jax import lax, nn
from jaxtyping import Array, Bool, Float, Int

from ssl_jax import ops

# Of Sinkhorn's loop: the number of iterations done, log c, log r, and how much c changed.
Carry = tuple[int | Int[Array, ""], Float[Array, "batch 1"], Float[Array, "prototypes"], Float[Array, ""]]


def sinkhorn(
    scores: Float[Array, "batch prototypes"],
    *,
    epsilon: float | Float[Array, ""] = 0.05,
    iterations: int = 3,
    tolerance: float = 0.0,
    weights: Float[Array, " batch"] | None = None,
    axis_name: str | None = None,
) -> Float[Array, "batch prototypes"]:
    """Turns scores into soft codes that use all prototypes equally.

    The codes Q = diag(c) exp(scores / epsilon) diag(r) solve the entropic optimal transport problem: over the global
    batch, rows sum to 1 and columns to batch / prototypes. Sinkhorn and Knopp's iterations start from c = 1. Each one
    sets r to make the columns' sums equal, then c to make the rows' sums equal. Rows sum to 1 after any number of
    iterations; columns approach their sum.

    Args:
      scores: [batch, prototypes], any scale. They carry no gradient.
      epsilon: > 0, the weight of the codes' entropy: towards 0 codes become hard. A traced scalar if it changes.
      iterations: at least 1. With a tolerance it is the largest number of iterations.
      tolerance: >= 0. Stops after the first iteration with sum_i |c_i / c_new_i - 1| < tolerance over the global batch.
      weights: [batch], >= 0: how many rows each row counts for. A row of weight 0 does not influence the other rows; it
        gets the code that follows from their r. (DINOv2's masked patches have weight 1, the others 0.) None: all rows
        count the same.
      axis_name: mapped axis that the batch is sharded over; None if scores hold the whole batch.

    Returns: float32 codes [batch, prototypes] of this device's rows, without gradient.
    Raises: ValueError if scores are not [batch, prototypes], weights not [batch], or iterations < 1.
    Source: Caron et al. 2020, arXiv:2006.09882, eq. 3-5, with their code's order of steps. Computed in logarithms, so
      that no score overflows or leaves a prototype without mass. SeLa (Asano et al. 2019, arXiv:1911.05371, section 3):
      its label is the largest entry of a row, with log softmax scores, epsilon = 1 / lambda and tolerance 0.1, which
      their code checks every tenth iteration. In float32, give a bound on the iterations, too.
    """
    if scores.ndim != 2:
        raise ValueError(f"scores must be [batch, prototypes], got {scores.shape}")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    if weights is not None and weights.shape != scores.shape[:1]:
        raise ValueError(f"weights must have one entry for each row of scores, got {weights.shape}, {scores.shape}")
    scores = lax.stop_gradient(scores.astype(jnp.float32))
    largest = jnp.max(scores, axis=1, keepdims=True)
    # Each row is divided by its largest entry first. So the logs of large codes are near 0, where float32 is finest.
    # Logs are clipped at 1e6: beyond that, every code is 0 or 1, and float32 is so coarse that exp could overflow. A
    # compiler may round a sum in two ways, one for the maximum and one for what the maximum is subtracted from.
    log_kernel = jnp.maximum((scores - largest) / epsilon, -1e6)
    log_c = jnp.clip(largest / epsilon, -1e6, 1e6)
    if weights is None:
        log_share, log_weight, counts = math.log(ops.num_rows(scores, axis_name) / scores.shape[1]), 0.0, True
    else:
        counts = lax.stop_gradient(weights[:, None] > 0)
        # Not log 0, which would give NaN if no row counts.
        log_weight = jnp.where(counts, jnp.log(jnp.where(counts, weights[:, None], 1.0)), -1e30)
        log_share = ops.global_logsumexp(log_weight, axis_name) - math.log(scores.shape[1])

    def step(i: int | Int[Array, ""], log_c: Float[Array, "batch 1"]) -> Carry:
        log_r = log_share - ops.global_logsumexp(log_kernel + log_c + log_weight, axis_name)
        new_log_c = -nn.logsumexp(log_kernel + log_r, axis=1, keepdims=True)
        change = jnp.sum(jnp.abs(jnp.expm1(log_c - new_log_c)), where=counts)
        return i + 1, new_log_c, log_r, ops.global_sum(change, axis_name)

    def unfinished(carry: Carry) -> Bool[Array, ""]:
        return (carry[0] < iterations) & (carry[3] >= tolerance)

    *_, log_r, _ = lax.while_loop(unfinished, lambda carry: step(*carry[:2]), step(0, log_c))
    return nn.softmax(log_kernel + log_r)  # normalizes each row, so that it sums to 1 despite the rounding of c


def swav(
    high: Float[Array, "high_views batch prototypes"],
    low: Float[Array, "low_views batch prototypes"] | None = None,
    *,
    queue_scores: Float[Array, "high_views queue prototypes"] | None = None,
    temperature: float = 0.1,
    epsilon: float = 0.05,
    iterations: int = 3,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Swapped prediction: each view predicts the code that `sinkhorn` gives to another view, a large crop of the image.

    loss = mean over large crops t, over all views v != t, and over the batch, of
    -sum_k q_t,k log softmax(scores_v / temperature)_k with q_t = sinkhorn(scores_t). The loss is log(prototypes) if the
    scores are constant: then the networks, or the prototypes, have collapsed.

    Args:
      high: [views, batch, prototypes], cosines of the large crops with the prototypes.
      low: [views, batch, prototypes], cosines of the small crops, which get no codes. None: no small crops.
      queue_scores: [views, queue, prototypes], cosines of earlier large crops, the same on every device. They only join
        the Sinkhorn iterations. This helps if the batch is smaller than the number of prototypes.
      temperature: > 0. epsilon, iterations: those of `sinkhorn`.
      axis_name: mapped axis that the batch is sharded over; None if the scores hold the whole batch.

    Returns: float32 scalar >= 0; its mean over devices is the loss of the whole batch.
    Raises: ValueError if the shapes do not agree, or there is a single view.
    Source: Caron et al. 2020, arXiv:2006.09882, eq. 1-2, multi-crop eq. 6. The mean over views is as in their code.
    """
    if high.ndim != 3 or (low is not None and (low.ndim != 3 or low.shape[1:] != high.shape[1:])):
        raise ValueError(
            "high and low must be [views, batch, prototypes] of one batch, "
            f"got {high.shape}, {None if low is None else low.shape}"
        )
    views = high if low is None else jnp.concatenate([high, low])
    if len(views) < 2:
        raise ValueError(f"a code is predicted from another view; give at least two views, got {high.shape}")
    if queue_scores is not None and (
        queue_scores.ndim != 3 or (len(queue_scores), queue_scores.shape[-1]) != (len(high), high.shape[-1])
    ):
        raise ValueError(
            "queue_scores must be [views, queue, prototypes] for high of [views, batch, prototypes], "
            f"got {queue_scores.shape}, {high.shape}"
        )

    def codes(
        scores: Float[Array, "batch prototypes"], queue: Float[Array, "queue prototypes"] | None = None
    ) -> Float[Array, "batch prototypes"]:
        if queue is None:
            return sinkhorn(scores, epsilon=epsilon, iterations=iterations, axis_name=axis_name)
        # Every device computes all rows, because the queue must count only once.
        rows = jnp.concatenate([ops.all_rows(scores, axis_name), queue])
        q = sinkhorn(rows, epsilon=epsilon, iterations=iterations)
        return lax.dynamic_slice_in_dim(q, ops.first_row(scores, axis_name), len(scores))

    queues = [None] * len(high) if queue_scores is None else queue_scores
    targets = jnp.stack([codes(scores, queue) for scores, queue in zip(high, queues, strict=True)])
    return ops.cross_view_entropy(targets, ops.log_softmax(views, temperature))


def pseudo_label_cross_entropy(
    scores: Float[Array, "views batch clusters"],
    labels: Int[Array, "batch"],
    *,
    weights: Float[Array, "clusters"] | None = None,
    temperature: float = 0.1,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Classifies every view as the cluster that its image was assigned to beforehand.

    loss = sum_i w_i mean_v ce_vi / sum_i w_i over the labeled images i of the global batch, with
    ce_vi = -log softmax(scores_vi / temperature)_{labels_i} and w_i = weights_{labels_i}. Without weights: the mean
    over the labeled images. 0 if no image is labeled.

    Args:
      scores: [views, batch, clusters], such as cosines with the centroids.
      labels: [batch] in 0, ..., clusters - 1; -1 for an image without a label, which does not count.
      weights: [clusters], > 0, any scale; ODC's decrease with the cluster's size. No gradient.
      temperature: > 0. 0.1 for cosines; 1 for a linear layer's logits (DeepCluster v1, SeLa, ODC).
      axis_name: mapped axis that the batch is sharded over; None if the arrays hold the whole batch.

    Returns: float32 scalar >= 0; its mean over devices is the loss of the whole batch.
    Raises: ValueError if the shapes do not agree.
    Source: Caron et al. 2018, arXiv:1807.05520, eq. 1. DeepCluster-v2: Caron et al. 2020, arXiv:2006.09882. The
      weights: Zhan et al. 2020, arXiv:2006.10645; their code divides by the weights' sum, too.
    """
    if scores.ndim != 3 or labels.shape != scores.shape[1:2]:
        raise ValueError(
            f"scores must be [views, batch, clusters] and labels [batch], got {scores.shape}, {labels.shape}"
        )
    if weights is not None and weights.shape != scores.shape[2:]:
        raise ValueError(f"weights must have one entry for each cluster, got {weights.shape}, {scores.shape}")
    label = jnp.maximum(labels, 0)
    weight = 1.0 if weights is None else lax.stop_gradient(weights.astype(jnp.float32))[label]
    weight = jnp.where(labels >= 0, weight, 0.0)
    log_p = ops.log_softmax(scores, temperature)
    ce = -jnp.take_along_axis(log_p, label[None, :, None], axis=-1)[..., 0]
    total = ops.global_mean(jnp.sum(weight), axis_name)  # the mean, because the sum below is one device's
    return jnp.sum(weight * jnp.mean(ce, axis=0)) / jnp.where(total > 0, total, 1.0)


def self_classifier(
    scores1: Float[Array, "heads batch classes"],
    scores2: Float[Array, "heads batch classes"],
    *,
    temperature: float = 0.1,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Self-Classifier: each view predicts the classes of the other, of which each has the same share of the images.

    With s = scores / temperature of one head, t(s) is its softmax over the global batch, so that the targets of each
    class sum to 1 over the images. The loss of a head is the mean of both directions of
    -1 / batch * sum_{b, y} t(s1)_by log softmax(s2_b)_y; the loss is the mean over heads. The gradient flows through
    the targets, too. Where all images have the same scores, each class has a target of 1 / batch of every image.

    Args:
      scores1, scores2: [heads, batch, classes] of two views, such as cosines with the classes' prototypes; row i of
        both shows image i.
      temperature: > 0, of both softmaxes.
      axis_name: mapped axis that the batch is sharded over; None if the arrays hold the whole batch.

    Returns: float32 scalar >= 0; its mean over devices is the loss of the whole batch.
    Raises: ValueError if scores1 and scores2 are not [heads, batch, classes] of one shape.
    Source: Amrani, Karlinsky & Bronstein 2021, arXiv:2103.10994, section 3, as in the authors' code: a target's sum
      over the classes is not 1.
    """
    if scores1.ndim != 3 or scores1.shape != scores2.shape:
        raise ValueError(
            f"scores1 and scores2 must be [heads, batch, classes] of one shape, got {scores1.shape}, {scores2.shape}"
        )

    def predicts(scores: Float[Array, "heads batch classes"], other: Float[Array, "heads batch classes"]) -> Array:
        targets = jnp.moveaxis(_softmax_over_batch(jnp.moveaxis(other, 1, 0), temperature, axis_name), 0, 1)
        return jnp.mean(ops.cross_entropy(targets, scores, temperature))

    return (predicts(scores1, scores2) + predicts(scores2, scores1)) / 2.0


def _softmax_over_batch(
    scores: Float[Array, "batch heads classes"], temperature: float, axis_name: str | None
) -> Float[Array, "batch heads classes"]:
    scores = scores.astype(jnp.float32)
    # Relative to the largest before the division, as in ops.softmax.
    largest = lax.stop_gradient(jnp.max(scores, axis=0))
    scores = (scores - (largest if axis_name is None else lax.pmax(largest, axis_name))) / temperature
    return jnp.exp(scores - ops.global_logsumexp(scores, axis_name))


def pcl_prototypes(
    embedding: Float[Array, "batch dim"],
    centroids: Float[Array, "clusters dim"],
    concentration: Float[Array, "clusters"],
    assignments: Int[Array, "batch"],
    negatives: Int[Array, "negatives"] | None = None,
    *,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """ProtoNCE's term for one clustering: an embedding finds its cluster's centroid, at the cluster's own temperature.

    loss = the mean over the batch of -l_a(i) + log sum_c exp(l_c), with l_c = cos(embedding_i, centroids_c) /
    concentration_c and a(i) the image's cluster. With negatives, c runs over the clusters of the images of the global
    batch, once for each image, and over the negatives. Without negatives, c runs over all clusters, once each.

    Args:
      embedding: [batch, dim], any scale.
      centroids: [clusters, dim], any scale. No gradient.
      concentration: [clusters], > 0, scaled such that their mean is the temperature (0.2). No gradient.
      assignments: [batch] in 0, ..., clusters - 1.
      negatives: distinct clusters drawn at random, the same on every device. The loss leaves out those that images of
        the global batch belong to.
      axis_name: mapped axis that the batch is sharded over; None if the arrays hold the whole batch.

    Returns: float32 scalar >= 0; its mean over devices is the loss of the whole batch.
    Raises: ValueError if the shapes do not agree.
    Source: Li et al. 2020, arXiv:2005.04966, eq. 11. The candidates are as in the authors' code: another image of the
      same cluster adds that cluster's centroid once more, as if it were a different one.
    """
    if embedding.ndim != 2 or centroids.ndim != 2 or embedding.shape[1] != centroids.shape[1]:
        raise ValueError(f"embedding and centroids must be rows of one dim, got {embedding.shape}, {centroids.shape}")
    if concentration.shape != centroids.shape[:1] or assignments.shape != embedding.shape[:1]:
        raise ValueError(
            "concentration must be [clusters], assignments [batch], "
            f"got {concentration.shape}, {assignments.shape} for {centroids.shape}, {embedding.shape}"
        )
    z = ops.normalize(embedding)
    # The concentration divides the centroids, so that a candidate's logit is one dot product.
    centroids = lax.stop_gradient(ops.normalize(centroids) / concentration.astype(jnp.float32)[:, None])
    positive = jnp.sum(z * centroids[assignments], axis=-1)
    if negatives is None:
        candidates, valid = centroids, True
    else:
        own = ops.all_rows(assignments, axis_name)
        candidates = centroids[jnp.concatenate([own, negatives])]
        valid = jnp.concatenate([jnp.full(len(own), True), ~jnp.isin(negatives, own)])
    logits = jnp.matmul(z, candidates.T, precision="highest")
    return jnp.mean(nn.logsumexp(logits, axis=-1, where=valid) - positive)


def smog(
    prediction: Float[Array, "batch dim"],
    projection: Float[Array, "batch dim"],
    target: Float[Array, "batch dim"],
    groups: Float[Array, "groups dim"],
    *,
    beta: float = 0.99,
    temperature: float = 0.1,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], Float[Array, "groups dim"]]:
    """Synchronous momentum grouping: the student predicts the group of the teacher's view; groups move in each step.

    Each projection of the global batch joins the group nearest to it by cosine. A group that projections have joined
    moves: new_g = beta * group_g + (1 - beta) * mean of its projections. The other groups stay. Then
    loss = mean over the batch of -log softmax(cos(prediction_i, new) / temperature)_g(i), with g(i) the old group
    nearest to target_i. The gradient flows to the predictions and, through the new groups, to the projections.

    Args:
      prediction, projection: [batch, dim], the student's output after and before its predictor.
      target: [batch, dim], the teacher's projections of the other view. No gradient.
      groups: [groups, dim], at the scale of the projections, which they are averaged with. No gradient.
      beta: in [0, 1], the groups' momentum.
      temperature: > 0.
      axis_name: mapped axis that the batch is sharded over; None if the arrays hold the whole batch.

    Returns: (loss, new groups). The loss is a float32 scalar >= 0; its mean over devices is the loss of the whole
      batch. The new groups are float32, without gradient, the same on every device.
    Raises: ValueError if the shapes do not agree.
    Source: Pang et al. 2022, arXiv:2207.06167, section 3.
    """
    ops.check_rows(prediction=prediction, projection=projection, target=target)
    if groups.ndim != 2 or groups.shape[1] != prediction.shape[1]:
        raise ValueError(f"groups must be [groups, dim] of the embeddings' dim, got {groups.shape}, {prediction.shape}")
    groups = lax.stop_gradient(groups.astype(jnp.float32))
    projection = projection.astype(jnp.float32)
    nearest = jnp.argmax(_cosines(projection, groups), axis=-1)
    sums, sizes = (
        jax.ops.segment_sum(x, nearest, len(groups)) for x in (projection, jnp.ones(len(projection), jnp.float32))
    )
    # Means over devices suffice: their ratio is the ratio of the sums.
    sums, sizes = (ops.global_mean(x, axis_name) for x in (sums, sizes[:, None]))
    means = sums / jnp.where(sizes > 0, sizes, 1.0)
    groups, old = jnp.where(sizes > 0, beta * groups + (1.0 - beta) * means, groups), groups
    label = jnp.argmax(_cosines(target, old), axis=-1)
    logits = _cosines(prediction, groups)[None]
    loss = pseudo_label_cross_entropy(logits, label, temperature=temperature, axis_name=axis_name)
    return loss, lax.stop_gradient(groups)


def _cosines(a: Float[Array, "a dim"], b: Float[Array, "b dim"]) -> Float[Array, "a b"]:
    return jnp.matmul(ops.normalize(a), ops.normalize(b).T, precision="highest")

"""Losses of pretext tasks, whose targets come from the image itself, and of supervised pre-training."""

import jax
import jax.numpy as jnp
from jax import nn
from jaxtyping import Array, Float, Int

from ssl_jax import ops


def classification(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"] | Float[Array, "batch classes"],
    *,
    label_smoothing: float = 0.0,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Cross entropy of each row's class, averaged over the rows of the global batch that have a class.

    Args:
      logits: [batch, classes].
      labels: [batch] in 0, ..., classes - 1, or -1 for no label. Or [batch, classes], the class probabilities of mixed
        images, with a row of zeros for no label.
      label_smoothing: in [0, 1): this share of each target is spread over all classes alike (arXiv:1512.00567).
      axis_name: mapped axis that the batch is sharded over; None if the arrays hold the whole batch.

    Returns: float32 scalar >= 0; its mean over devices is the loss of the whole batch. The chance level is
      log(classes). 0 if no row has a label.
    Raises: ValueError if the shapes do not agree or label_smoothing is out of range.
    """
    if logits.ndim != 2 or labels.shape not in (logits.shape, logits.shape[:1]):
        raise ValueError(
            f"logits must be [batch, classes], labels [batch] or of their shape, got {logits.shape}, {labels.shape}"
        )
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
    classes = logits.shape[1]
    targets = labels if labels.ndim == 2 else nn.one_hot(labels, classes)  # -1 gives a row of zeros
    labeled = jnp.any(targets > 0.0, axis=1)
    targets = (1.0 - label_smoothing) * targets + label_smoothing / classes
    return ops.mean_where(ops.cross_entropy(targets, logits), labeled, axis_name)


def colorization(
    logits: Float[Array, "batch positions bins"],
    targets: Float[Array, "batch positions bins"],
    weights: Float[Array, "batch positions"],
    *,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Cross entropy of the color bins at each position, weighted in favor of rare colors, averaged over the images.

    The mean over the global batch and positions of weights * -sum_q targets_q log softmax(logits)_q.

    Args:
      logits: [batch, positions, bins].
      targets: [batch, positions, bins], probabilities, without gradient.
      weights: [batch, positions], >= 0: 1 on average over the colors of the data; 0 where a position does not count.
      axis_name: mapped axis that the batch is sharded over; None if the arrays hold the whole batch.

    Returns: float32 scalar >= 0; its mean over devices is the loss of the whole batch.
    Raises: ValueError if the shapes do not agree.
    Source: Zhang, Isola & Efros 2016, arXiv:1603.08511, eq. 2. The mean over positions replaces the paper's sum.
    """
    if logits.ndim != 3 or logits.shape != targets.shape or weights.shape != logits.shape[:2]:
        raise ValueError(
            "logits and targets must be [batch, positions, bins] of one shape, weights [batch, positions], "
            f"got {logits.shape}, {targets.shape}, {weights.shape}"
        )
    return jnp.mean(jax.lax.stop_gradient(weights) * ops.cross_entropy(jax.lax.stop_gradient(targets), logits))


def counting(
    whole: Float[Array, "batch dim"],
    parts: Float[Array, "batch tiles dim"],
    others: Float[Array, "batch dim"],
    *,
    margin: float = 10.0,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """The counts of an image should equal the sum of its tiles' counts, and differ from another image's counts.

    The mean over the batch of |whole - s|^2 + max(0, margin - |others - s|^2), where s is the sum of parts over tiles.

    Args:
      whole, others: [batch, dim], >= 0: counts of the downscaled image, and of a different downscaled image.
      parts: [batch, tiles, dim]: counts of each tile of the image.
      margin: > 0; without it, all counts would become 0.
      axis_name: not used, because the mean needs no other device's rows; all losses have it.

    Returns: float32 scalar >= 0; its mean over devices is the loss of the whole batch. `margin` where all counts are 0.
    Raises: ValueError if the shapes do not agree.
    Source: Noroozi, Pirsiavash & Favaro 2017, arXiv:1708.06734, eq. 5.
    """
    if parts.ndim != 3 or not whole.shape == others.shape == (parts.shape[0], parts.shape[2]):
        raise ValueError(
            "whole and others must be [batch, dim], parts [batch, tiles, dim], "
            f"got {whole.shape}, {others.shape}, {parts.shape}"
        )
    whole, parts, others = (x.astype(jnp.float32) for x in (whole, parts, others))
    total = jnp.sum(parts, axis=1)
    equal = jnp.sum((whole - total) ** 2, axis=1)
    different = jnp.sum((others - total) ** 2, axis=1)
    return jnp.mean(equal + jnp.maximum(0.0, margin - different))

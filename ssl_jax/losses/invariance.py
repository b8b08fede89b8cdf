"""Losses of invariant prediction: which image this is should be told the same way from every view."""

# pyright: reportUnknownMemberType=false

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ssl_jax import ops


def relic(
    online: Float[Array, "views batch dim"],
    target: Float[Array, "targets batch dim"],
    negatives: Int[Array, "batch count"] | None = None,
    *,
    temperature: float = 0.2,
    invariance: float = 1.0,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """ReLIC: each view finds its image among a few, and both sides of a pair of views agree on how likely each is.

    For image i, C(i) is i and its negatives, and s the cosine similarity. For a view l of `online` and a view k of
    `target`, p = softmax over c in C(i) of s(online_l,i, target_k,c) / temperature, and q = softmax over c in C(i) of
    s(target_k,i, online_l,c) / temperature. The loss is the mean over i, l and k of
    -log p_i + invariance * KL(p, q). The entropy within KL(p, q) = sum_c p_c log p_c - sum_c p_c log q_c, its first
    term, has no gradient.

    Args:
      online: [views, batch, dim], any scale; row i of each view shows image i.
      target: [targets, batch, dim], any scale. The gradient flows to both: where the targets are a teacher's, the
        caller stops it.
      negatives: [batch, count] rows of the global batch, for each image those of other images. None: all others.
      temperature: > 0.
      invariance: weight of the divergence, >= 0.
      axis_name: mapped axis that the batch is sharded over; None if the arrays hold the whole batch.

    Returns: float32 scalar >= 0; its mean over devices is the loss of the whole batch. Of equal embeddings it is
      log(1 + count).
    Raises: ValueError if online and target are not [views, batch, dim] of one batch and dim, or negatives not
      [batch, count].
    Source: Mitrovic et al. 2020, arXiv:2010.07922, eq. 3, with all images of the batch; Tomasev et al. 2022,
      arXiv:2201.05119, with few negatives, several views, and the stopped gradient.
    """
    if online.ndim != 3 or target.ndim != 3 or online.shape[1:] != target.shape[1:]:
        raise ValueError(
            f"online and target must be [views, batch, dim] of one batch and dim, got {online.shape}, {target.shape}"
        )
    batch = online.shape[1]
    if negatives is not None and (negatives.ndim != 2 or len(negatives) != batch):
        raise ValueError(f"negatives must be [batch, count] with batch {batch}, got {negatives.shape}")
    online, target = ops.normalize(online), ops.normalize(target)
    own = ops.first_row(online[0], axis_name) + jnp.arange(batch)
    candidates = None if negatives is None else jnp.concatenate([own[:, None], negatives], axis=1)
    place = own if negatives is None else jnp.zeros(batch, int)  # of an image among its candidates

    def log_probabilities(anchors: Float[Array, "views batch dim"], keys: Float[Array, "others batch dim"]) -> Array:
        """[views, others, batch, candidates]"""
        keys = ops.all_rows(keys.swapaxes(0, 1), axis_name)  # [global batch, others, dim]
        if candidates is None:
            scores = jnp.einsum("abd,cod->aobc", anchors, keys, precision="highest")
        else:
            scores = jnp.einsum("abd,bcod->aobc", anchors, keys[candidates], precision="highest")
        return ops.log_softmax(scores, temperature)

    log_p = log_probabilities(online, target)
    log_q = log_probabilities(target, online).swapaxes(0, 1)
    p = jnp.exp(log_p)
    divergence = jnp.sum(lax.stop_gradient(p * log_p) - p * log_q, axis=-1)
    right = jnp.take_along_axis(log_p, place[None, None, :, None], axis=-1)[..., 0]
    return jnp.mean(invariance * divergence - right)

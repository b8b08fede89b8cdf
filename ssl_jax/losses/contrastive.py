"""Contrastive losses: an embedding is to be told from others by its likeness to its positive."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ssl_jax.losses import _common

# For a key that is no candidate. Finite, because the gradient of (-inf) - (-inf) is NaN; exp of it is 0.
MASKED = -1e9


def nt_xent(
    z1: Float[Array, "batch dim"],
    z2: Float[Array, "batch dim"],
    *,
    temperature: float = 0.1,
    axis_name: str | None = None,
    chunk_size: int | None = None,
) -> Float[Array, ""]:
    """Normalized temperature-scaled cross entropy: each embedding finds its other view among all others.

    For each of the 2N anchors i with positive p(i), s the cosine similarity:
    loss_i = -s(i, p(i)) / temperature + log sum_{k != i} exp(s(i, k) / temperature), over the 2N - 1 other
    embeddings of both views; the mean over the anchors. Identical embeddings give log(2N - 1), chance level.

    Args:
      z1, z2: [batch, dim] projections of two views, any scale; row i of both shows image i.
      temperature: > 0. 0.1 for ImageNet at batch 4096, 0.5 for CIFAR-10 in the paper.
      axis_name: mapped axis that the batch is split over; None if z1, z2 are the whole batch.
      chunk_size: None builds the [2 batch, 2 global batch] similarities at once; else they are computed for
        this many keys at a time, forward and again backward: the same numbers in less memory.

    Returns: float32 scalar >= 0; its mean over devices is the loss of the whole batch.
    Raises: ValueError if z1 and z2 are not [batch, dim] of one shape, or chunk_size < 1.
    Source: Chen et al. 2020, arXiv:2002.05709, eq. 1 and algorithm 1. The authors' code adds the two
      directions, each averaged over the batch: twice this.
    """
    if z1.ndim != 2 or z1.shape != z2.shape:
        raise ValueError(f"z1 and z2 must be [batch, dim] of one shape, got {z1.shape}, {z2.shape}")
    n = len(z1)
    anchors = _common.normalize(jnp.concatenate([z1, z2]))
    keys = _common.all_rows(anchors, axis_name)
    own = _common.first_row(anchors, axis_name) + jnp.arange(2 * n)
    positive = jnp.sum(anchors * jnp.roll(anchors, n, axis=0), axis=-1) / temperature
    return jnp.mean(_logsumexp_of_others(anchors / temperature, keys, own, chunk_size) - positive)


def _logsumexp_of_others(
    anchors: Float[Array, "rows dim"],
    keys: Float[Array, "keys dim"],
    own: Int[Array, "rows"],
    chunk_size: int | None,
) -> Float[Array, "rows"]:
    """log sum_{k != own[i]} exp(anchors[i] . keys[k]) for each row i."""
    if chunk_size is None:
        return jax.nn.logsumexp(_logits(anchors, keys, own, 0, len(keys)), axis=-1)
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    return _streamed_logsumexp(anchors, keys, own, chunk_size)


def _logits(anchors, keys, own, start, num_keys):
    """anchors . keys, where `keys` are those from `start` on of `num_keys`; each row's own key and padding masked."""
    index = start + jnp.arange(len(keys))
    candidate = (index != own[:, None]) & (index < num_keys)
    return jnp.where(candidate, anchors @ keys.T, MASKED)


def _chunks(keys, chunk_size):
    """Keys, zero-padded, as [chunks, chunk_size, dim], and the index of each chunk's first key."""
    count = -(-len(keys) // chunk_size)
    padded = jnp.pad(keys, ((0, count * chunk_size - len(keys)), (0, 0)))
    return padded.reshape(count, chunk_size, -1), chunk_size * jnp.arange(count)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _streamed_logsumexp(anchors, keys, own, chunk_size):
    return _streamed_forward(anchors, keys, own, chunk_size)[0]


def _streamed_forward(anchors, keys, own, chunk_size):
    def step(carry, chunk):
        largest, total = carry
        logits = _logits(anchors, chunk[0], own, chunk[1], len(keys))
        new_largest = jnp.maximum(largest, jnp.max(logits, axis=-1))
        total = total * jnp.exp(largest - new_largest) + jnp.sum(jnp.exp(logits - new_largest[:, None]), axis=-1)
        return (new_largest, total), None

    zero = 0.0 * anchors[:, 0]  # varies over the devices as the anchors do, which the scan's carry must
    (largest, total), _ = lax.scan(step, (zero + MASKED, zero), _chunks(keys, chunk_size))
    result = largest + jnp.log(total)
    return result, (anchors, keys, own, result)


def _streamed_backward(chunk_size, residuals, cotangent):
    anchors, keys, own, result = residuals

    def step(anchor_gradient, chunk):
        logits = _logits(anchors, chunk[0], own, chunk[1], len(keys))
        weights = jnp.exp(logits - result[:, None]) * cotangent[:, None]
        return anchor_gradient + weights @ chunk[0], weights.T @ anchors

    anchor_gradient, key_gradients = lax.scan(step, 0.0 * anchors, _chunks(keys, chunk_size))
    return anchor_gradient, key_gradients.reshape(-1, keys.shape[-1])[: len(keys)], None


_streamed_logsumexp.defvjp(_streamed_forward, _streamed_backward)

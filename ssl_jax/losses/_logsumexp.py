"""log sum exp of the products of anchors and keys: at once, or streamed in chunks and around the ring of devices, so
that no device holds more than its rows times a chunk."""

import functools

import jax
import jax.numpy as jnp
from jax import lax, nn
from jaxtyping import Array, Float, Int

from ssl_jax.losses import _common

# For a key that is no candidate. Finite, because the gradient of (-inf) - (-inf) is NaN; exp of it is 0.
MASKED = -1e9

# In float32 also where the hardware would rather multiply in bfloat16, whose error of 4e-3 a temperature multiplies.
matmul = functools.partial(jnp.matmul, precision="highest")


def logsumexp(
    anchors: Float[Array, "rows dim"],
    keys: Float[Array, "keys dim"],
    excluded: Int[Array, "rows count"] | None,
    chunk_size: int | None,
    axis_name: str | None = None,
) -> Float[Array, "rows"]:
    """log sum_k exp(anchors[i] . keys[k]) for each row i, over the keys of all devices that excluded[i] does not name.

    chunk_size: None for all keys at once. axis_name: None for keys that are the same on every device.
    """
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    excluded = jnp.zeros((len(anchors), 0), int) if excluded is None else excluded
    if chunk_size is None:
        keys = _common.all_rows(keys, axis_name)
        return nn.logsumexp(_logits(anchors, keys, excluded, 0, len(keys)), axis=-1)
    return _streamed_logsumexp(anchors, _common.vary_like(keys, anchors), excluded, chunk_size, axis_name)


def _logits(anchors, keys, excluded, start, end):
    """anchors . keys, where `keys` are those from `start` on; excluded keys, and those from `end` on, masked."""
    index = start + jnp.arange(len(keys))
    candidate = jnp.all(index != excluded[:, :, None], axis=1) & (index < end)
    return jnp.where(candidate, matmul(anchors, keys.T), MASKED)


def _chunks(keys, chunk_size, start):
    """Keys, zero-padded, as [chunks, chunk_size, dim], and the index of each chunk's first key, from `start` on."""
    count = -(-len(keys) // chunk_size)
    padded = jnp.pad(keys, ((0, count * chunk_size - len(keys)), (0, 0)))
    return padded.reshape(count, chunk_size, -1), start + chunk_size * jnp.arange(count)


def _around(step, carry, travelers, axis_name):
    """step(carry, travelers, owner) -> (carry, travelers), once for the travelers of each device, which go from device
    to device until they are home; `owner` is where they come from."""
    if axis_name is None:
        return step(carry, travelers, 0)
    count, here = lax.axis_size(axis_name), lax.axis_index(axis_name)
    onward = [(device, (device + 1) % count) for device in range(count)]

    def visit(i, both):
        carry, travelers = step(*both, (here - i) % count)
        return carry, jax.tree.map(lambda x: lax.ppermute(x, axis_name, onward), travelers)

    return lax.fori_loop(0, count, visit, (carry, travelers))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _streamed_logsumexp(anchors, keys, excluded, chunk_size, axis_name):
    return _streamed_forward(anchors, keys, excluded, chunk_size, axis_name)[0]


def _streamed_forward(anchors, keys, excluded, chunk_size, axis_name):
    def see(sums, keys, owner):
        start, end = owner * len(keys), (owner + 1) * len(keys)

        def step(sums, chunk):
            largest, total = sums
            logits = _logits(anchors, chunk[0], excluded, chunk[1], end)
            new_largest = jnp.maximum(largest, jnp.max(logits, axis=-1))
            total = total * jnp.exp(largest - new_largest) + jnp.sum(_exp_below(logits, new_largest), axis=-1)
            return (new_largest, total), None

        return lax.scan(step, sums, _chunks(keys, chunk_size, start))[0], keys

    zero = 0.0 * anchors[:, 0]  # varies over the devices as the anchors do, which a loop's carry must
    (largest, total), _ = _around(see, (zero + MASKED, zero), keys, axis_name)
    result = largest + jnp.log(total)
    return result, (anchors, keys, excluded, result)


def _streamed_backward(chunk_size, axis_name, residuals, cotangent):
    anchors, keys, excluded, result = residuals

    def see(anchor_gradient, travelers, owner):
        keys, key_gradient = travelers
        start, end = owner * len(keys), (owner + 1) * len(keys)

        def step(anchor_gradient, chunk):
            logits = _logits(anchors, chunk[0], excluded, chunk[1], end)
            weights = _exp_below(logits, result) * cotangent[:, None]
            return anchor_gradient + matmul(weights, chunk[0]), matmul(weights.T, anchors)

        anchor_gradient, new = lax.scan(step, anchor_gradient, _chunks(keys, chunk_size, start))
        return anchor_gradient, (keys, key_gradient + new.reshape(-1, keys.shape[-1])[: len(keys)])

    anchor_gradient, (_, key_gradient) = _around(see, 0.0 * anchors, (keys, 0.0 * keys), axis_name)
    return anchor_gradient, key_gradient, None


def _exp_below(logits, bound):
    """exp(logits - bound), which is at most 1. A compiler may round the logits that the bound was taken from otherwise
    than these; at a large scale the difference is not small, and its exp would overflow."""
    return jnp.exp(jnp.minimum(logits - bound[:, None], 0.0))


_streamed_logsumexp.defvjp(_streamed_forward, _streamed_backward)

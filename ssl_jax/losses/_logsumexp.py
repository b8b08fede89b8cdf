"""log sum exp of the dot products of anchors and keys, computed at once or streamed.

Streamed, the keys travel around the ring of devices and are processed in chunks. So no device holds a matrix larger
than its rows times a chunk.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax, nn
from jaxtyping import Array, Float, Int

from ssl_jax import ops

# The logit of a key that is not a candidate: its exp is 0. Finite, because the gradient of (-inf) - (-inf) is NaN.
MASKED = -1e9

# In float32, also on hardware that by default multiplies in bfloat16: 1 / temperature amplifies its error of 4e-3.
matmul = functools.partial(jnp.matmul, precision="highest")


def logsumexp(
    anchors: Float[Array, "rows dim"],
    keys: Float[Array, "keys dim"],
    excluded: Int[Array, "rows count"] | None,
    chunk_size: int | None,
    axis_name: str | None = None,
) -> Float[Array, "rows"]:
    """log sum_k exp(anchors[i] . keys[k]) for each row i, over the keys of all devices except those in excluded[i].

    chunk_size: None for all keys at once. axis_name: None if every device has the same keys.
    """
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    excluded = jnp.zeros((len(anchors), 0), int) if excluded is None else excluded
    if chunk_size is None:
        keys = ops.all_rows(keys, axis_name)
        return nn.logsumexp(_logits(anchors, keys, excluded, 0, len(keys)), axis=-1)
    return _streamed_logsumexp(anchors, ops.vary_like(keys, anchors), excluded, chunk_size, axis_name)


def _logits(anchors, keys, excluded, start, end):
    """anchors . keys, where the first of `keys` has index `start`. Masks excluded keys and those from `end` on."""
    index = start + jnp.arange(len(keys))
    candidate = jnp.all(index != excluded[:, :, None], axis=1) & (index < end)
    return jnp.where(candidate, matmul(anchors, keys.T), MASKED)


def _chunks(keys, chunk_size, start):
    """(zero-padded keys [chunks, chunk_size, dim], the index of each chunk's first key). Indices begin at `start`."""
    count = -(-len(keys) // chunk_size)
    padded = jnp.pad(keys, ((0, count * chunk_size - len(keys)), (0, 0)))
    return padded.reshape(count, chunk_size, -1), start + chunk_size * jnp.arange(count)


def _around(step, carry, travelers, axis_name):
    """Calls step(carry, travelers, owner) -> (carry, travelers) once for each device's travelers.

    The travelers go from device to device until they are home. `owner` is the device that they started from.
    """
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

    zero = 0.0 * anchors[:, 0]  # varies over devices as the anchors do: a loop's carry must
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
    """exp(logits - bound), at most 1.

    The bound was computed from the same logits, but a compiler may have rounded them differently there. If logits are
    large, the difference is not small, and its exp would overflow.
    """
    return jnp.exp(jnp.minimum(logits - bound[:, None], 0.0))


_streamed_logsumexp.defvjp(_streamed_forward, _streamed_backward)

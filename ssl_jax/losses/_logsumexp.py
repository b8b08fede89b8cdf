"""log sum exp of the dot products of anchors and keys, computed at once or streamed.

Streamed, the keys travel around the ring of devices and are processed in chunks. So no device holds a matrix larger
than its rows times a chunk.
"""

# pyright: reportUnknownMemberType=false

import functools
from collections.abc import Callable
from typing import TypeVar, cast

import jax
import jax.numpy as jnp
from jax import lax, nn
from jaxtyping import Array, Float, Int

from ssl_jax import ops

# The logit of a key that is not a candidate: its exp is 0. Finite, because the gradient of (-inf) - (-inf) is NaN.
MASKED = -1e9

Carry = TypeVar("Carry")
Travelers = TypeVar("Travelers")

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


def _logits(
    anchors: Float[Array, "rows dim"],
    keys: Float[Array, "keys dim"],
    excluded: Int[Array, "rows count"],
    start: int | Int[Array, ""],
    end: int | Int[Array, ""],
) -> Float[Array, "rows keys"]:
    """anchors . keys, where the first of `keys` has index `start`. Masks excluded keys and those from `end` on."""
    index = start + jnp.arange(len(keys))
    candidate = jnp.all(index != excluded[:, :, None], axis=1) & (index < end)
    return jnp.where(candidate, matmul(anchors, keys.T), MASKED)


def _chunks(
    keys: Float[Array, "keys dim"], chunk_size: int, start: int | Int[Array, ""]
) -> tuple[Float[Array, "chunks chunk_size dim"], Int[Array, "chunks"]]:
    """(zero-padded keys [chunks, chunk_size, dim], the index of each chunk's first key). Indices begin at `start`."""
    count = -(-len(keys) // chunk_size)
    padded = jnp.pad(keys, ((0, count * chunk_size - len(keys)), (0, 0)))
    return padded.reshape(count, chunk_size, -1), start + chunk_size * jnp.arange(count)


def _around(
    step: Callable[[Carry, Travelers, int | Int[Array, ""]], tuple[Carry, Travelers]],
    carry: Carry,
    travelers: Travelers,
    axis_name: str | None,
) -> tuple[Carry, Travelers]:
    """Calls step(carry, travelers, owner) -> (carry, travelers) once for each device's travelers.

    The travelers go from device to device until they are home. `owner` is the device that they started from.
    """
    if axis_name is None:
        return step(carry, travelers, 0)
    count, here = lax.axis_size(axis_name), lax.axis_index(axis_name)
    onward = [(device, (device + 1) % count) for device in range(count)]

    def visit(i: Int[Array, ""], both: tuple[Carry, Travelers]) -> tuple[Carry, Travelers]:
        carry, travelers = step(*both, (here - i) % count)
        return carry, jax.tree.map(functools.partial(lax.ppermute, axis_name=axis_name, perm=onward), travelers)

    return cast(tuple[Carry, Travelers], lax.fori_loop(0, count, visit, (carry, travelers)))


# The largest logit of each row so far, and the sum of exp(logit - largest).
Sums = tuple[Float[Array, "rows"], Float[Array, "rows"]]
# anchors, keys, excluded and the result.
Residuals = tuple[Float[Array, "rows dim"], Float[Array, "keys dim"], Int[Array, "rows count"], Float[Array, "rows"]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _streamed_logsumexp(
    anchors: Float[Array, "rows dim"],
    keys: Float[Array, "keys dim"],
    excluded: Int[Array, "rows count"],
    chunk_size: int,
    axis_name: str | None,
) -> Float[Array, "rows"]:
    return _streamed_forward(anchors, keys, excluded, chunk_size, axis_name)[0]


def _streamed_forward(
    anchors: Float[Array, "rows dim"],
    keys: Float[Array, "keys dim"],
    excluded: Int[Array, "rows count"],
    chunk_size: int,
    axis_name: str | None,
) -> tuple[Float[Array, "rows"], Residuals]:
    def see(sums: Sums, keys: Float[Array, "keys dim"], owner: int | Int[Array, ""]) -> tuple[Sums, Array]:
        start, end = owner * len(keys), (owner + 1) * len(keys)

        def step(sums: Sums, chunk: tuple[Array, Array]) -> tuple[Sums, None]:
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


def _streamed_backward(
    chunk_size: int, axis_name: str | None, residuals: Residuals, cotangent: Float[Array, "rows"]
) -> tuple[Float[Array, "rows dim"], Float[Array, "keys dim"], None]:
    anchors, keys, excluded, result = residuals

    def see(
        anchor_gradient: Float[Array, "rows dim"], travelers: tuple[Array, Array], owner: int | Int[Array, ""]
    ) -> tuple[Float[Array, "rows dim"], tuple[Array, Array]]:
        keys, key_gradient = travelers
        start, end = owner * len(keys), (owner + 1) * len(keys)

        def step(anchor_gradient: Array, chunk: tuple[Array, Array]) -> tuple[Array, Array]:
            logits = _logits(anchors, chunk[0], excluded, chunk[1], end)
            weights = _exp_below(logits, result) * cotangent[:, None]
            return anchor_gradient + matmul(weights, chunk[0]), matmul(weights.T, anchors)

        anchor_gradient, new = lax.scan(step, anchor_gradient, _chunks(keys, chunk_size, start))
        return anchor_gradient, (keys, key_gradient + new.reshape(-1, keys.shape[-1])[: len(keys)])

    anchor_gradient, (_, key_gradient) = _around(see, 0.0 * anchors, (keys, 0.0 * keys), axis_name)
    return anchor_gradient, key_gradient, None


def _exp_below(logits: Float[Array, "rows keys"], bound: Float[Array, "rows"]) -> Float[Array, "rows keys"]:
    """exp(logits - bound), at most 1.

    The bound was computed from the same logits, but a compiler may have rounded them differently there. If logits are
    large, the difference is not small, and its exp would overflow.
    """
    return jnp.exp(jnp.minimum(logits - bound[:, None], 0.0))


_streamed_logsumexp.defvjp(_streamed_forward, _streamed_backward)

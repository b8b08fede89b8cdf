"""What the losses share: normalization and reductions over the global batch."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def normalize(z: Float[Array, "*batch dim"], eps: float = 1e-12) -> Float[Array, "*batch dim"]:
    """Rows of `z` scaled to unit length, in float32; a row without any entry above `eps` is divided by `eps` instead.

    So a row of zeros stays one, with the gradient of z / eps where that of z / norm(z) is NaN.
    """
    z = z.astype(jnp.float32)
    # Scaled by the largest entry first, the squares of 1e30 do not overflow, nor those of 1e-30 vanish.
    largest = lax.stop_gradient(jnp.max(jnp.abs(z), axis=-1, keepdims=True))
    z = z / jnp.maximum(largest, eps)
    return z * lax.rsqrt(jnp.maximum(jnp.sum(z * z, axis=-1, keepdims=True), 1.0))


def all_rows(x: Float[Array, "batch ..."], axis_name: str | None) -> Float[Array, "global_batch ..."]:
    """The rows of all devices, in the devices' order; `x` itself where `axis_name` is None."""
    return x if axis_name is None else lax.all_gather(x, axis_name, tiled=True)


def first_row(x: Float[Array, "batch ..."], axis_name: str | None) -> int | Array:
    """Where this device's rows begin in `all_rows(x, axis_name)`."""
    return 0 if axis_name is None else lax.axis_index(axis_name) * len(x)

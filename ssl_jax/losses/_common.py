"""What the losses share: normalization and reductions over the global batch."""

import jax.numpy as jnp
from jax import lax, nn
from jaxtyping import Array, Float, Shaped


def normalize(z: Float[Array, "*batch dim"], eps: float = 1e-12) -> Float[Array, "*batch dim"]:
    """Rows of `z` scaled to unit length, in float32; a row without any entry above `eps` is divided by `eps` instead.

    So a row of zeros stays one, with the gradient of z / eps where that of z / norm(z) is NaN.
    """
    z = z.astype(jnp.float32)
    # Scaled by the largest entry first, the squares of 1e30 do not overflow, nor those of 1e-30 vanish.
    largest = lax.stop_gradient(jnp.max(jnp.abs(z), axis=-1, keepdims=True))
    z = z / jnp.maximum(largest, eps)
    return z * lax.rsqrt(jnp.maximum(jnp.sum(z * z, axis=-1, keepdims=True), 1.0))


def all_rows(x: Shaped[Array, "batch ..."], axis_name: str | None) -> Shaped[Array, "global_batch ..."]:
    """The rows of all devices, in the devices' order; `x` itself where `axis_name` is None."""
    return x if axis_name is None else lax.all_gather(x, axis_name, tiled=True)


def first_row(x: Shaped[Array, "batch ..."], axis_name: str | None) -> int | Array:
    """Where this device's rows begin in `all_rows(x, axis_name)`."""
    return 0 if axis_name is None else lax.axis_index(axis_name) * len(x)


def num_rows(x: Shaped[Array, "batch ..."], axis_name: str | None) -> int:
    """Rows of the global batch."""
    return len(x) if axis_name is None else len(x) * lax.axis_size(axis_name)


def global_mean(x: Float[Array, "..."], axis_name: str | None) -> Float[Array, "..."]:
    """The mean over devices of what each has computed of its own rows: the global batch's where that is a mean."""
    return x if axis_name is None else lax.pmean(x, axis_name)


def center(z: Float[Array, "batch ..."], axis_name: str | None) -> Float[Array, "batch ..."]:
    """`z` in float32 minus its mean over the global batch."""
    z = z.astype(jnp.float32)
    return z - global_mean(jnp.mean(z, axis=0), axis_name)


def standardize(z: Float[Array, "batch dim"], axis_name: str | None, eps: float = 1e-5) -> Float[Array, "batch dim"]:
    """Columns of mean 0 and biased variance 1 over the global batch, as BatchNorm without scale and offset."""
    z = center(z, axis_name)
    return z * lax.rsqrt(global_mean(jnp.mean(z * z, axis=0), axis_name) + eps)


def cross_entropy(
    targets: Float[Array, "*batch classes"], logits: Float[Array, "*batch classes"]
) -> Float[Array, "*batch"]:
    """-sum_k targets_k log softmax(logits)_k, in float32."""
    return -jnp.sum(targets * nn.log_softmax(logits.astype(jnp.float32)), axis=-1)

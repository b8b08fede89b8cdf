"""Rows of the global batch, and reductions over it. With axis_name=None, an array holds the whole batch."""

from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Num, Shaped


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
    """The mean over devices of `x`, which each device computed from its own rows.

    If `x` is a mean over the device's rows, the result is the mean over the global batch.
    """
    return x if axis_name is None else lax.pmean(x, axis_name)


def global_sum(x: Num[Array, "..."], axis_name: str | None) -> Num[Array, "..."]:
    """The sum over devices of `x`, which each device computed from its own rows."""
    return x if axis_name is None else lax.psum(x, axis_name)


def mean_where(
    values: Float[Array, "batch ..."], where: Bool[Array, "batch ..."], axis_name: str | None
) -> Float[Array, ""]:
    """This device's contribution to the mean of `values` where `where` is True in the global batch.

    The mean of the results over devices is that mean. 0 if `where` is True nowhere.
    """
    count = global_mean(jnp.sum(where, dtype=jnp.float32), axis_name)  # per device, on average
    return jnp.sum(jnp.where(where, values, 0.0)) / jnp.where(count > 0, count, 1.0)


def global_logsumexp(x: Float[Array, "batch ..."], axis_name: str | None) -> Float[Array, "..."]:
    """log sum exp over the rows of the global batch, the same on every device."""
    largest = lax.stop_gradient(jnp.max(x, axis=0))
    largest = largest if axis_name is None else lax.pmax(largest, axis_name)
    total = jnp.sum(jnp.exp(x - largest), axis=0)
    return largest + jnp.log(global_sum(total, axis_name))


def vary_like(x: Shaped[Array, "..."], like: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """`x`, marked as varying over all axes that `like` varies over. custom_vjp and loop carries need this."""
    missing = jax.typeof(like).manual_axis_type.varying - jax.typeof(x).manual_axis_type.varying
    return lax.pcast(x, tuple(missing), to="varying") if missing else x


def center(z: Float[Array, "batch ..."], axis_name: str | None) -> Float[Array, "batch ..."]:
    """`z` in float32 minus its mean over the global batch."""
    z = z.astype(jnp.float32)
    return z - global_mean(jnp.mean(z, axis=0), axis_name)


def standardize(z: Float[Array, "batch dim"], axis_name: str | None, eps: float = 1e-5) -> Float[Array, "batch dim"]:
    """Columns of mean 0 and biased variance 1 over the global batch, like BatchNorm without scale and offset."""
    z = center(z, axis_name)
    return z * lax.rsqrt(global_mean(jnp.mean(z * z, axis=0), axis_name) + eps)


def second_moment(
    x: Float[Array, "batch *groups dim"], y: Float[Array, "batch *groups dim2"], axis_name: str | None
) -> Float[Array, "*groups dim dim2"]:
    """The mean of x_i y_j over the global batch, for each group separately."""
    return global_mean(jnp.einsum("b...i,b...j->...ij", x, y, precision="highest") / len(x), axis_name)


def varies(x: Any, axis_name: str) -> bool:
    """Whether `x` may differ between devices, as far as shard_map's check knows; pmap has no such check."""
    return axis_name in jax.typeof(x).manual_axis_type.varying


def of_each_device(x: Shaped[Array, "..."], axis_name: str) -> Shaped[Array, "devices ..."]:
    """`x` of each device, in the devices' order, the same on every device.

    With shard_map's check it is known to be the same, so a state may depend on it, and its gradient is not sent: each
    device takes its own part of it.
    """
    checked = varies(lax.axis_index(axis_name), axis_name)
    return cast(Array, lax.all_gather(x, axis_name, to="invarying" if checked else "varying"))


def average_varying(tree: Any, axis_name: str) -> Any:
    """The mean over devices of each leaf. Leaves that are known to be the same on all devices are not sent.

    With check_vma, shard_map's gradients are replicated already: another pmean would send each parameter twice. Without
    the check, and under pmap, no leaf is known to be the same.
    """
    if not varies(lax.axis_index(axis_name), axis_name):
        return lax.pmean(tree, axis_name)
    return jax.tree.map(lambda x: lax.pmean(x, axis_name) if varies(x, axis_name) else x, tree)

"""What the losses share: normalization and reductions over the global batch."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax, nn
from jaxtyping import Array, Bool, Float, Num, Shaped


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


def global_sum(x: Num[Array, "..."], axis_name: str | None) -> Num[Array, "..."]:
    """The sum over devices of what each has computed of its own rows."""
    return x if axis_name is None else lax.psum(x, axis_name)


def mean_where(
    values: Float[Array, "batch ..."], where: Bool[Array, "batch ..."], axis_name: str | None
) -> Float[Array, ""]:
    """What this device adds to the mean of `values` over all places of the global batch where `where` is True.

    So the mean over devices of what each returns is that mean; 0 if there is no such place.
    """
    count = global_mean(jnp.sum(where, dtype=jnp.float32), axis_name)  # that devices have on average
    return jnp.sum(jnp.where(where, values, 0.0)) / jnp.where(count > 0, count, 1.0)


def center(z: Float[Array, "batch ..."], axis_name: str | None) -> Float[Array, "batch ..."]:
    """`z` in float32 minus its mean over the global batch."""
    z = z.astype(jnp.float32)
    return z - global_mean(jnp.mean(z, axis=0), axis_name)


def standardize(z: Float[Array, "batch dim"], axis_name: str | None, eps: float = 1e-5) -> Float[Array, "batch dim"]:
    """Columns of mean 0 and biased variance 1 over the global batch, as BatchNorm without scale and offset."""
    z = center(z, axis_name)
    return z * lax.rsqrt(global_mean(jnp.mean(z * z, axis=0), axis_name) + eps)


def second_moment(
    x: Float[Array, "batch *groups dim"], y: Float[Array, "batch *groups dim2"], axis_name: str | None
) -> Float[Array, "*groups dim dim2"]:
    """The mean over the global batch of x_i y_j, for each group by itself."""
    return global_mean(jnp.einsum("b...i,b...j->...ij", x, y, precision="highest") / len(x), axis_name)


def cross_entropy(
    targets: Float[Array, "*batch classes"], scores: Float[Array, "*batch classes"], temperature: float = 1.0
) -> Float[Array, "*batch"]:
    """-sum_k targets_k log softmax(scores / temperature)_k, in float32."""
    return -jnp.sum(targets * log_softmax(scores, temperature), axis=-1)


def global_logsumexp(x: Float[Array, "batch ..."], axis_name: str | None) -> Float[Array, "..."]:
    """log sum exp over the rows of the global batch, the same on every device."""
    largest = lax.stop_gradient(jnp.max(x, axis=0))
    largest = largest if axis_name is None else lax.pmax(largest, axis_name)
    total = jnp.sum(jnp.exp(x - largest), axis=0)
    return largest + jnp.log(global_sum(total, axis_name))


def log_softmax(
    scores: Float[Array, "*batch classes"], temperature: float | Float[Array, ""] = 1.0
) -> Float[Array, "*batch classes"]:
    """log softmax(scores / temperature) in float32."""
    return nn.log_softmax(_below_zero(scores) / temperature)


def softmax(
    scores: Float[Array, "*batch classes"], temperature: float | Float[Array, ""] = 1.0
) -> Float[Array, "*batch classes"]:
    """softmax(scores / temperature) in float32."""
    return nn.softmax(_below_zero(scores) / temperature)


def _below_zero(scores):
    # The maximum is subtracted before the division. Else a compiler fuses division and subtraction, the maximum is
    # rounded differently from what it is subtracted from, and exp of what is left overflows (seen from 1e9 on).
    scores = scores.astype(jnp.float32)
    return scores - lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))


def cross_view_entropy(
    targets: Float[Array, "target_views batch classes"], log_predictions: Float[Array, "views batch classes"]
) -> Float[Array, ""]:
    """-sum_k targets[t]_k log_predictions[v]_k: its mean over the batch and all pairs of views t != v.

    Target t is that of view t of the predictions.
    """
    pairs = -jnp.einsum("tbk,vbk->tv", targets, log_predictions, precision="highest") / targets.shape[1]
    return jnp.mean(pairs, where=~jnp.eye(*pairs.shape, dtype=bool))


def vary_like(x: Shaped[Array, "..."], like: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """`x`, no longer marked as the same on all devices where `like` is not: custom gradients and loops want it so."""
    missing = jax.typeof(like).manual_axis_type.varying - jax.typeof(x).manual_axis_type.varying
    return lax.pcast(x, tuple(missing), to="varying") if missing else x


def map_matrices(
    function: Callable[[Float[Array, "..."]], Float[Array, "..."]], matrices: Float[Array, "batch ..."]
) -> Float[Array, "batch ..."]:
    """`jax.vmap(function)`, for functions that factor their matrix or find its eigenvectors.

    On CPUs it takes one after the other. JAX 0.10.2 divides a batch of them among the threads that the simulated
    devices run on; when each device waits there for the others' help, all wait for good.
    """
    one_by_one = functools.partial(lax.map, function)
    return lax.platform_dependent(matrices, cpu=one_by_one, default=jax.vmap(function))


def check_rows(**arrays: Shaped[Array, "..."]) -> None:
    """Refuses arrays, given by name, that are not [batch, dim] of one shape."""
    shapes = [x.shape for x in arrays.values()]
    if len(shapes[0]) != 2 or len(set(shapes)) > 1:
        names = " and ".join(arrays)
        raise ValueError(f"{names} must be [batch, dim] of one shape, got {', '.join(map(str, shapes))}")

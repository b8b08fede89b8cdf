"""Functions of one device's rows that are accurate for very large and very small numbers, too."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, nn
from jaxtyping import Array, Float, Shaped

# Number of rows that are checked at a time: not all at once, because features of patches may be large.
CHECKED_ROWS = 1024


def normalize(z: Float[Array, "*batch dim"], eps: float = 1e-12) -> Float[Array, "*batch dim"]:
    """Rows of `z` scaled to unit length, in float32; a row without any entry above `eps` is divided by `eps` instead.

    So a row of zeros stays zero. Its gradient is that of z / eps; that of z / norm(z) would be NaN.
    """
    z = z.astype(jnp.float32)
    # Divided by the largest entry first, so that squares of 1e30 do not overflow and those of 1e-30 do not vanish.
    largest = lax.stop_gradient(jnp.max(jnp.abs(z), axis=-1, keepdims=True))
    z = z / jnp.maximum(largest, eps)
    return z * lax.rsqrt(jnp.maximum(jnp.sum(z * z, axis=-1, keepdims=True), 1.0))


def cross_entropy(
    targets: Float[Array, "*batch classes"], scores: Float[Array, "*batch classes"], temperature: float = 1.0
) -> Float[Array, "*batch"]:
    """-sum_k targets_k log softmax(scores / temperature)_k, in float32."""
    return -jnp.sum(targets * log_softmax(scores, temperature), axis=-1)


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
    # The maximum is subtracted before the division. Otherwise a compiler fuses division and subtraction and rounds the
    # maximum differently from what it is subtracted from. Then exp of the difference overflows (seen from 1e9 on).
    scores = scores.astype(jnp.float32)
    return scores - lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))


def cross_view_entropy(
    targets: Float[Array, "target_views batch classes"], log_predictions: Float[Array, "views batch classes"]
) -> Float[Array, ""]:
    """The mean of -sum_k targets[t]_k log_predictions[v]_k over the batch and all pairs of views t != v.

    Target t belongs to view t of the predictions.
    """
    pairs = -jnp.einsum("tbk,vbk->tv", targets, log_predictions, precision="highest") / targets.shape[1]
    return jnp.mean(pairs, where=~jnp.eye(*pairs.shape, dtype=bool))


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x times the standard normal distribution's probability of less than x, exact (arXiv:1606.08415, section 2).

    `jax.nn.gelu(x, approximate=False)` with JAX 0.10's derivative of erfc, because shard_map's check refuses that of
    JAX 0.12: "Primitive polynomial requires varying manual axes to match".
    """
    return 0.5 * x * _erfc(-x * math.sqrt(0.5))


@jax.custom_jvp
def _erfc(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return lax.erfc(x)


@_erfc.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    return _erfc(x), -2.0 / math.sqrt(math.pi) * (tangent * jnp.exp(-jnp.square(x)))


def map_matrices(
    function: Callable[[Float[Array, "..."]], Float[Array, "..."]], matrices: Float[Array, "batch ..."]
) -> Float[Array, "batch ..."]:
    """`jax.vmap(function)`, for functions that factor their matrix or find its eigenvectors.

    On CPUs it takes the matrices one by one. There JAX 0.10.2 divides a batch of matrices among the threads that the
    simulated devices run on. If every device waits for the others' threads, all wait forever.
    """
    one_by_one = functools.partial(lax.map, function)
    return lax.platform_dependent(matrices, cpu=one_by_one, default=jax.vmap(function))


def check_rows(**arrays: Shaped[Array, "..."]) -> None:
    """Raises ValueError if the arrays, given by name, are not [batch, dim] of one shape."""
    shapes = [x.shape for x in arrays.values()]
    if len(shapes[0]) != 2 or len(set(shapes)) > 1:
        names = " and ".join(arrays)
        raise ValueError(f"{names} must be [batch, dim] of one shape, got {', '.join(map(str, shapes))}")


def check_finite(name: str, features: Float[np.ndarray, "images *places dim"]) -> None:
    """Raises ValueError if a row of features has a NaN or infinity: those would win or lose every comparison."""
    chunks = (features[start : start + CHECKED_ROWS] for start in range(0, len(features), CHECKED_ROWS))
    broken = sum(int(np.sum(~np.isfinite(chunk).reshape(len(chunk), -1).all(axis=1))) for chunk in chunks)
    if broken:
        remedy = "check the backbone" + (", or keep float32" if features.dtype == np.float16 else "")
        raise ValueError(f"{name}: {broken} of {len(features)} rows of features are not finite; {remedy}")

"""`Dense`: Flax's `nn.Dense`, faster on a CPU for more than rows of features.

XLA's CPU backend (JAX 0.10) multiplies [batch, tokens, inputs] by a kernel at some 0.7 of the speed of [batch * tokens,
inputs], forward and backward. On other platforms the shape stays, since a reshape there may be a copy.
"""

import functools
from typing import Any

import flax.linen as nn
from jax import lax
from jaxtyping import Array

from ssl_jax.models.recompute import keep

ROWS = (((1,), (0,)), ((), ()))


def dot_general(x: Array, kernel: Array, dimension_numbers: Any, precision: Any = None, **options: Any) -> Array:
    """lax.dot_general as nn.Dense calls it: x [..., inputs], kernel [inputs, outputs] -> [..., outputs]."""

    def plain(x: Array, kernel: Array) -> Array:
        return lax.dot_general(x, kernel, dimension_numbers, precision=precision, **options)

    def of_rows(x: Array, kernel: Array) -> Array:
        y = lax.dot_general(x.reshape(-1, x.shape[-1]), kernel, ROWS, precision=precision, **options)
        return y.reshape(*x.shape[:-1], kernel.shape[1])

    return keep(plain(x, kernel) if x.ndim < 3 else lax.platform_dependent(x, kernel, cpu=of_rows, default=plain))


Dense = functools.partial(nn.Dense, dot_general=dot_general)

"""Attention for TPUs whose logits never leave a core: a Pallas kernel.

XLA writes each head's logits [tokens, tokens] to main memory, and their gradient. For 16 images, 16 heads and 1,025
tokens, forward and backward, that is 9.4 GiB of traffic, where this kernel has 1.6 (libtpu's programs for a v5e). A
head's keys and values are in the core's memory as a whole. So a block of queries sees all of them, and softmax is the
plain one. The backward pass computes the logits again, and keeps nothing but queries, keys and values (as Dao et al.
2022, arXiv:2205.14135, with whole rows).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

# Logits of a block of queries: four arrays of 1 MiB each in the backward pass, of float32.
BLOCK_LOGITS = 2**18

OF_ROWS = (((1,), (1,)), ((), ()))  # x y^T
OF_COLUMNS = (((0,), (0,)), ((), ()))  # x^T y


Of = Float[Array, "batch tokens heads head_dim"]


def forward(queries: Of, keys: Of, values: Of, *, interpret: bool = False) -> Of:
    """softmax(queries keys^T / sqrt(head_dim)) values, for each head of each image; logits and softmax in float32.

    The core's memory bounds tokens and head_dim; see attention.py. interpret: computes the kernel step by step, on any
    platform, for tests.
    """
    arrays = [_of_heads(x) for x in (queries, keys, values)]
    (result,) = _call(_forward, arrays, [_like(arrays[0])], products=2, interpret=interpret)
    return _of_tokens(result, queries)


def backward(queries: Of, keys: Of, values: Of, g: Of, *, interpret: bool = False) -> tuple[Of, Of, Of]:
    """The gradients with respect to queries, keys and values, from g, that with respect to `forward`'s result."""
    arrays = [_of_heads(x) for x in (queries, keys, values, g)]
    results = [_like(arrays[0]), *(_like(x, jnp.float32) for x in arrays[1:3])]  # of keys and values: sums over blocks
    found = _call(_backward, arrays, results, products=5, interpret=interpret)
    dqueries, dkeys, dvalues = (_of_tokens(x.astype(queries.dtype), queries) for x in found)
    return dqueries, dkeys, dvalues


def _of_heads(x: Array) -> Array:
    return x.swapaxes(1, 2).reshape(-1, x.shape[1], x.shape[3])


def _of_tokens(x: Array, like: Array) -> Array:
    batch, tokens, heads, width = like.shape
    return x.reshape(batch, heads, tokens, width).swapaxes(1, 2)


def _call(kernel: Any, arrays: Any, results: Any, *, products: int, interpret: bool) -> Any:
    """Runs a kernel for each head and each block of queries. A head's keys and values, the second and third of `arrays`
    and of `results`, stay in the core's memory; the others come block by block.

    products: how many of two matrices it computes for each block.
    """
    heads, tokens, width = arrays[0].shape
    rows = min(BLOCK_LOGITS // tokens // 16 * 16, -(-tokens // 16) * 16)
    block = pl.BlockSpec((1, rows, width), lambda head, number: (head, number, 0))
    whole = pl.BlockSpec((1, tokens, width), lambda head, number: (head, 0, 0))
    specs = [block, whole, whole, block]
    moved = sum(array.size * array.dtype.itemsize for array in (*arrays, *results))
    logits = heads * tokens**2
    return pl.pallas_call(
        functools.partial(kernel, scale=width**-0.5, tokens=tokens),
        grid=(heads, pl.cdiv(tokens, rows)),
        in_specs=specs[: len(arrays)],
        out_specs=specs[: len(results)],
        out_shape=results,
        cost_estimate=pl.CostEstimate(
            flops=2 * products * logits * width, bytes_accessed=moved, transcendentals=logits
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
    )(*arrays)


def _forward(q, k, v, result, *, scale, tokens):
    weights = _softmax(q[0], k[0], scale).astype(v.dtype)
    result[0] = jnp.dot(weights, v[0], preferred_element_type=jnp.float32).astype(result.dtype)


def _backward(q, k, v, g, dq, dk, dv, *, scale, tokens):
    number, rows = pl.program_id(1), q.shape[1]
    # Rows of the last block that are behind the last token hold anything.
    there = number * rows + lax.broadcasted_iota(jnp.int32, (rows, 1), 0) < tokens
    queries, gradient = jnp.where(there, q[0], 0), jnp.where(there, g[0], 0)
    weights = _softmax(queries, k[0], scale)
    of_weights = lax.dot_general(gradient, v[0], OF_ROWS, preferred_element_type=jnp.float32)
    of_logits = weights * (of_weights - jnp.sum(weights * of_weights, axis=1, keepdims=True))
    of_logits = (scale * of_logits).astype(q.dtype)
    dq[0] = jnp.dot(of_logits, k[0], preferred_element_type=jnp.float32).astype(dq.dtype)

    @pl.when(number == 0)
    def _():
        dk[0], dv[0] = jnp.zeros_like(dk[0]), jnp.zeros_like(dv[0])

    dk[0] += lax.dot_general(of_logits, queries, OF_COLUMNS, preferred_element_type=jnp.float32)
    dv[0] += lax.dot_general(weights.astype(g.dtype), gradient, OF_COLUMNS, preferred_element_type=jnp.float32)


def _softmax(queries: Array, keys: Array, scale: float) -> Array:
    logits = scale * lax.dot_general(queries, keys, OF_ROWS, preferred_element_type=jnp.float32)
    weights = jnp.exp(logits - jnp.max(logits, axis=1, keepdims=True))
    return weights / jnp.sum(weights, axis=1, keepdims=True)


def _like(x: Array, dtype: Any = None) -> jax.ShapeDtypeStruct:
    # A kernel's results do not say by themselves along which mapped axes they vary.
    return jax.ShapeDtypeStruct(x.shape, dtype or x.dtype, manual_axis_type=jax.typeof(x).manual_axis_type)

"""Attention, computed as the platform does it fastest."""

import functools
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from ssl_jax.keys import OneOf

ATTENTIONS = ("auto", "xla", "fused")
# From here on, "auto" takes the kernel on TPUs: it moves a third of the bytes then. It was not timed on a TPU.
FUSED_TOKENS = 512
MAX_WIDTH = 128  # of a head, for cuDNN before Hopper, and for the memory of a TPU's core
MAX_TPU_TOKENS = 2560  # whose keys, values and their gradients fit in a TPU core's 16 MiB beside a block of logits

AttentionKind = Annotated[
    str,
    OneOf(ATTENTIONS),
    "How attention is computed. xla: its logits are written to memory. fused: in bfloat16, by kernels that keep them",
    "on the chip, cuDNN's on NVIDIA's GPUs from Ampere on and our own on TPUs; elsewhere, in float32, and with a bias",
    f"or a mask, as xla. auto: fused, but on TPUs only from {FUSED_TOKENS} tokens on.",
]


def attention(
    queries: Float[Array, "batch tokens heads head_dim"],
    keys: Float[Array, "batch keys heads head_dim"],
    values: Float[Array, "batch keys heads head_dim"],
    bias: Float[Array, "#batch #heads #tokens #keys"] | None = None,
    mask: Bool[Array, "#batch #heads #tokens #keys"] | None = None,
    *,
    kind: str = "auto",
) -> Float[Array, "batch tokens heads head_dim"]:
    """jax.nn.dot_product_attention, whose softmax is in float32. kind: see `AttentionKind`."""
    _, tokens, _, width = queries.shape
    same = queries.shape == keys.shape and queries.dtype == jnp.bfloat16
    if kind != "xla" and bias is None and mask is None and same and width <= MAX_WIDTH:
        if jax.default_backend() == "gpu":
            if width % 8 == 0 and has_cudnn():
                return cudnn_attention(queries, keys, values)
        elif tokens <= MAX_TPU_TOKENS and (kind == "fused" or tokens >= FUSED_TOKENS):
            return tpu_attention(queries, keys, values)
    return plain_attention(queries, keys, values, bias, mask)


def plain_attention(
    queries: Array, keys: Array, values: Array, bias: Array | None = None, mask: Array | None = None
) -> Array:
    """`attention` by XLA. On a CPU the heads are moved beside the batch, so that each product is of two matrices: 0.8
    of the time."""

    def on_cpu(queries, keys, values, bias, mask):
        scale = queries.shape[-1] ** -0.5
        queries, keys, values = (x.swapaxes(1, 2) for x in (queries, keys, values))
        logits = scale * jnp.matmul(queries, keys.swapaxes(2, 3), preferred_element_type=jnp.float32)
        logits = logits if bias is None else logits + bias
        logits = logits if mask is None else jnp.where(mask, logits, 0.7 * jnp.finfo(logits.dtype).min)
        return jnp.matmul(nn.softmax(logits).astype(values.dtype), values).swapaxes(1, 2)

    default = jax.nn.dot_product_attention
    return lax.platform_dependent(queries, keys, values, bias, mask, cpu=on_cpu, default=default)


@jax.custom_vjp
def tpu_attention(queries: Array, keys: Array, values: Array) -> Array:
    """`attention` by our kernel where it is compiled for a TPU; elsewhere plain, and computed again for the gradient.

    Its derivative is its own, so that each platform's backward pass keeps the same, and no other's logits.
    """
    return lax.platform_dependent(queries, keys, values, tpu=_kernel().forward, default=plain_attention)


def _keep(queries: Array, keys: Array, values: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return tpu_attention(queries, keys, values), (queries, keys, values)


def _gradients(kept: tuple[Array, Array, Array], g: Array) -> Any:
    def plain(*given: Array) -> Any:
        return jax.vjp(plain_attention, *given[:3])[1](given[3])

    return lax.platform_dependent(*kept, g, tpu=_kernel().backward, default=plain)


tpu_attention.defvjp(_keep, _gradients)


def _kernel() -> Any:
    from ssl_jax.models import tpu_kernel  # here, as Pallas takes half a second to import

    return tpu_kernel


@functools.cache
def has_cudnn() -> bool:
    """Whether this process computes on NVIDIA's GPUs that cuDNN's fused attention knows: compute capability 8.0 or
    more."""
    # An AMD GPU's capability is a name such as gfx90a.
    major = str(getattr(jax.devices()[0], "compute_capability", "")).partition(".")[0]
    return major.isdigit() and int(major) >= 8


def cudnn_attention(
    queries: Float[Array, "batch tokens heads head_dim"],
    keys: Float[Array, "batch tokens heads head_dim"],
    values: Float[Array, "batch tokens heads head_dim"],
) -> Float[Array, "batch tokens heads head_dim"]:
    """Attention by cuDNN, whose backward pass takes even numbers of tokens only: an odd one is filled up, and cuDNN is
    told how many there are."""
    batch, tokens = queries.shape[:2]
    if tokens % 2 == 0:
        return jax.nn.dot_product_attention(queries, keys, values, implementation="cudnn")
    filled = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (queries, keys, values))
    lengths = jnp.full(batch, tokens, jnp.int32)
    result = jax.nn.dot_product_attention(
        *filled, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation="cudnn"
    )
    return result[:, :tokens]

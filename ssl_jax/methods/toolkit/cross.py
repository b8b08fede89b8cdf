"""Blocks of cross-attention, for predictors of hidden patches."""

# pyright: reportUnknownMemberType=false

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ssl_jax.models.attention import attention
from ssl_jax.models.blocks import FeedForward, dense, make_norm
from ssl_jax.models.positions import rotate
from ssl_jax.ops.shards import gather_all, has_shards

Rotations = tuple[Array, Array]  # as positions.Rope, without names of its axes: those of x and of its context differ


class CrossBlock(nn.Module):
    """x + attention(norm(x), context), then x + mlp(norm(x)), in float32.

    see_each_other: norm(x) is joined to the context. Otherwise no token of x sees another one. The other fields are
    those of `ViT`. query_rope, context_rope: rotations of queries and of keys, as `Rope`. Parameters
    that are shards (see ops.shards) are gathered here.
    """

    heads: int
    mlp: str = "gelu"
    mlp_ratio: float = 4.0
    norm_kind: str = "layer"
    norm_eps: float = 1e-6
    qkv_bias: bool = True
    bias: bool = True
    attention: str = "auto"
    dtype: str = "float32"
    see_each_other: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch queries dim"],
        context: Float[Array, "batch tokens context_dim"],
        query_rope: Rotations | None = None,
        context_rope: Rotations | None = None,
    ) -> Float[Array, "batch queries dim"]:
        run = CrossBlock.branches
        if has_shards(self.variables):
            run = nn.map_variables(run, "params", gather_all)
        return run(self, x, context, query_rope, context_rope)

    def branches(self, x: Array, context: Array, query_rope: Rotations | None, context_rope: Rotations | None) -> Array:
        dim, dtype = x.shape[-1], jnp.dtype(self.dtype)

        def heads_of(x: Array, name: str) -> Float[Array, "batch tokens heads head_dim"]:
            return dense(dim, dtype, name, self.qkv_bias)(x).reshape(*x.shape[:2], self.heads, -1)

        y = make_norm(self.norm_kind, dtype, "norm1", self.norm_eps)(x)
        if self.see_each_other:
            context = jnp.concatenate([context.astype(y.dtype), y], axis=1)
        queries, keys, values = heads_of(y, "q"), heads_of(context, "k"), heads_of(context, "v")
        queries = queries if query_rope is None else rotate(queries, query_rope)
        keys = keys if context_rope is None else rotate(keys, context_rope)
        y = attention(queries, keys, values, kind=self.attention)
        x = x + dense(dim, dtype, "proj", self.bias)(y.reshape(x.shape)).astype(jnp.float32)
        y = make_norm(self.norm_kind, dtype, "norm2", self.norm_eps)(x)
        mlp = FeedForward(round(self.mlp_ratio * dim), dtype, self.mlp, self.bias, name="mlp")
        return x + mlp(y).astype(jnp.float32)

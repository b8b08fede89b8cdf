"""Parts of vision transformers: patch embedding, blocks of attention and MLP, LayerNorm and RMSNorm.

Modules have timm's names, with "_" for "." before a number, so that weights/names.py needs no table of names.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ssl_jax import ops
from ssl_jax.models.attention import attention
from ssl_jax.models.conv import Conv
from ssl_jax.models.dense import Dense
from ssl_jax.models.heads import torch_init
from ssl_jax.models.positions import Rope, rotate
from ssl_jax.ops.shards import gather_all, has_shards

NormParams = Mapping[str, Any]  # "scale" and "bias" [dim] of a LayerNorm

MLPS = ("gelu", "quick_gelu", "swiglu")
NORMS = ("layer", "rms")

# timm's and most authors' trunc_normal_(std=0.02) cuts off at -2 and 2, a hundred deviations away: in effect a normal
# distribution.
weight_init = nn.initializers.normal(0.02)


class PatchEmbed(nn.Module):
    """images [batch, height, width, channels] -> [batch, patches, dim]: one linear map of each patch's pixels."""

    dim: int
    patch_size: int
    dtype: Any
    bias: bool = True

    @nn.compact
    def __call__(self, images):
        x = Conv(
            self.dim,
            (self.patch_size, self.patch_size),
            strides=(self.patch_size, self.patch_size),
            padding="VALID",
            use_bias=self.bias,
            kernel_init=torch_init,  # timm keeps torch's initialization here
            dtype=self.dtype,
            name="proj",
        )(images)
        return x.reshape(len(x), -1, self.dim)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); x [batch, tokens, dim] is float32 whatever `dtype` is.

    drop: which images have which of the two branches.
      None: all images have both.
      float [batch, 2]: the factor of each image's branch, either 0 or the number that makes the factors' mean 1.
      int [groups, 2, kept]: in each group of batch / groups consecutive images, those that have a branch, in rising
        order. Their branch is multiplied by batch / groups / kept. For the other images it is not computed.
    attend: as in `ViT`. bias: added to attention's logits, broadcast to [batch, heads, tokens, tokens]. rope: rotations
      of queries and keys, for all images or for each.
    Parameters that are shards (see ops.shards) are gathered here.
    """

    heads: int
    mlp_width: int
    layer_scale: float
    dtype: Any
    mlp: str = "gelu"
    qkv_bias: bool = True
    qk_norm: bool = False
    eps: float = 1e-6  # of all norms
    attention: str = "auto"  # see attention.AttentionKind
    bias: bool = True  # of all linear layers but those of qkv
    norm_kind: str = "layer"  # see `make_norm`

    @nn.compact
    def __call__(self, x, drop=None, attend=None, bias=None, rope=None):
        if has_shards(self.variables):
            return nn.map_variables(Block.branches, "params", gather_all)(self, x, drop, attend, bias, rope)
        return self.branches(x, drop, attend, bias, rope)

    def branches(self, x, drop, attend, bias, rope):
        def attend_to(x, of_images):
            y = make_norm(self.norm_kind, self.dtype, "norm1", self.eps)(x)
            attend, rope = of_images
            layer = Attention(
                self.heads,
                self.dtype,
                self.qkv_bias,
                self.eps if self.qk_norm else None,
                self.attention,
                self.bias,
                self.norm_kind,
                name="attn",
            )
            return self.scale(layer(y, attend, bias, rope), "ls1")

        def feed_forward(x, _):
            y = make_norm(self.norm_kind, self.dtype, "norm2", self.eps)(x)
            return self.scale(FeedForward(self.mlp_width, self.dtype, self.mlp, self.bias, name="mlp")(y), "ls2")

        first, second = (None, None) if drop is None else drop.swapaxes(0, 1)
        x = add_branch(x, attend_to, first, (attend, rope))
        return add_branch(x, feed_forward, second, None)

    def scale(self, y, name):
        y = y.astype(jnp.float32)
        return y if self.layer_scale == 0.0 else LayerScale(self.layer_scale, name=name)(y)


def add_branch(
    x: Float[Array, "batch tokens dim"],
    branch: Callable[[Any, Any], Any],
    drop: Array | None,
    of_images: Any,
) -> Float[Array, "batch tokens dim"]:
    """x + branch(x, of_images), for the images that have the branch.

    drop: as in `Block`, of this branch alone. of_images: a tree of arrays that have a row for each image, or one row.
    """
    if drop is None:
        return x + branch(x, of_images)
    if jnp.issubdtype(drop.dtype, jnp.floating):
        return x + branch(x, of_images) * drop[:, None, None]
    groups, kept = drop.shape
    size = len(x) // groups
    rows = (drop + size * jnp.arange(groups)[:, None]).ravel()
    known: dict[str, Any] = dict(unique_indices=True, indices_are_sorted=True, mode="promise_in_bounds")
    own = jax.tree.map(lambda a: a if len(a) == 1 else a[rows], of_images)
    return x.at[rows].add(branch(x.at[rows].get(**known), own) * (size / kept), **known)


class LayerScale(nn.Module):
    start: float

    @nn.compact
    def __call__(self, y):
        gamma = self.param("gamma", nn.initializers.constant(self.start), y.shape[-1:], jnp.float32)
        return y * gamma


class Attention(nn.Module):
    """x [batch, tokens, dim] -> the same shape. norm_eps: of the norm of each head's queries and keys (arXiv:
    2302.05442), None for no norm. kind: see attention.AttentionKind. The others are those of `Block`."""

    heads: int
    dtype: Any
    qkv_bias: bool = True
    norm_eps: float | None = None
    kind: str = "auto"
    bias: bool = True
    norm_kind: str = "layer"

    @nn.compact
    def __call__(self, x, attend, bias, rope):
        queries, keys, values = self.project(x, rope)
        mask = None if attend is None else attend[:, None]  # the same for all heads
        y = attention(queries, keys, values, bias, mask, kind=self.kind)
        return dense(x.shape[-1], self.dtype, "proj", self.bias)(y.reshape(x.shape))

    def project(
        self, x: Float[Array, "batch tokens dim"], rope: Rope | None
    ) -> tuple[Float[Array, "batch tokens heads head_dim"], ...]:
        """Queries, keys and values, as attention takes them."""
        batch, tokens, dim = x.shape
        qkv = dense(3 * dim, self.dtype, "qkv", self.qkv_bias)(x).reshape(batch, tokens, 3, self.heads, -1)
        queries, keys, values = (qkv[:, :, i] for i in range(3))
        if self.norm_eps is not None:
            queries = make_norm(self.norm_kind, self.dtype, "q_norm", self.norm_eps)(queries)
            keys = make_norm(self.norm_kind, self.dtype, "k_norm", self.norm_eps)(keys)
        if rope is not None:
            queries, keys = rotate(queries, rope), rotate(keys, rope)
        return queries, keys, values


class FeedForward(nn.Module):
    width: int
    dtype: Any
    kind: str = "gelu"
    bias: bool = True

    @nn.compact
    def __call__(self, x):
        y = dense(self.width, self.dtype, "fc1", self.bias)(x)
        if self.kind == "swiglu":
            gate, y = jnp.split(y, 2, axis=-1)
            y = nn.silu(gate) * y
        elif self.kind == "quick_gelu":
            y = y * nn.sigmoid(1.702 * y)
        else:
            y = ops.gelu(y)
        return dense(x.shape[-1], self.dtype, "fc2", self.bias)(y)


def dense(features: int, dtype: Any, name: str, bias: bool = True) -> nn.Module:
    return Dense(features, use_bias=bias, kernel_init=weight_init, dtype=dtype, name=name)


def make_norm(kind: str, dtype: Any, name: str | None, eps: float = 1e-6) -> nn.Module:
    """kind: "layer", or "rms": x / sqrt(mean of x^2 + eps) * scale (Zhang & Sennrich 2019, arXiv:1910.07467)."""
    if kind == "rms":
        return nn.RMSNorm(epsilon=eps, dtype=dtype, name=name)
    return layer_norm(dtype, name, eps)


def layer_norm(dtype: Any, name: str | None, eps: float = 1e-6) -> nn.Module:
    # Not the fast variance, E[x^2] - E[x]^2: it loses its digits where a token's mean is far from 0.
    return nn.LayerNorm(epsilon=eps, use_fast_variance=False, dtype=dtype, name=name)


def normed_by(
    params: NormParams, x: Float[Array, "batch tokens dim"], eps: float = 1e-6
) -> Float[Array, "batch tokens dim"]:
    """LayerNorm by parameters that the caller has, in float32."""
    norm = nn.LayerNorm(epsilon=eps, use_fast_variance=False, dtype=jnp.float32, parent=None)
    normed: Any = norm.apply({"params": params}, x)
    return normed

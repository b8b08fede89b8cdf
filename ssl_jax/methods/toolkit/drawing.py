"""How papers draw a ViT's first weights, where that differs from timm's defaults."""

# pyright: reportUnknownMemberType=false

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ssl_jax.methods.toolkit.networks import Variables
from ssl_jax.models.blocks import weight_init

BEIT_DEVIATION = 0.02  # of a normal distribution that is cut off at one deviation


def draw_xavier(rng: Key[Array, ""], params: Variables, *, split_qkv: bool) -> Variables:
    """A ViT's params with every kernel drawn anew, uniform in +-sqrt(6 / (fan-in + fan-out)).

    The patch projection counts as a linear layer on a patch's pixels. split_qkv: queries, keys and values count as
    three layers (MoCo v3); otherwise they are one layer of three times the width (MAE).
    """

    def draw(key: Key[Array, ""], names: list[str], leaf: Array) -> Array:
        if names[-1] != "kernel":
            return leaf
        fan_in, fan_out = leaf.size // leaf.shape[-1], leaf.shape[-1]
        if split_qkv and "qkv" in names:
            fan_out //= 3
        limit = math.sqrt(6 / (fan_in + fan_out))
        return jax.random.uniform(key, leaf.shape, leaf.dtype, -limit, limit)

    return _draw_leaves(rng, params, draw)


def draw_beit(rng: Key[Array, ""], params: Variables) -> Variables:
    """A ViT's params with the first weights of BEiT, data2vec and SimMIM.

    `beit_init` draws all kernels, that of the patch embedding too, the class token and learned positions. The last
    kernel of each of the two branches of block l (l from 1) is then divided by sqrt(2 l).

    Source: Bao et al. 2021, arXiv:2106.08254, section 2.5, and the three authors' code.
    """

    def draw(key: Key[Array, ""], names: list[str], leaf: Array) -> Array:
        if names[-1] not in ("kernel", "cls_token", "reg_token", "pos_embed"):
            return leaf
        found = re.fullmatch(r"blocks_(\d+)/(attn/proj|mlp/fc2)/kernel", "/".join(names))
        drawn = beit_init(key, leaf.shape, leaf.dtype)
        return drawn if found is None else drawn / math.sqrt(2 * (int(found[1]) + 1))

    return _draw_leaves(rng, params, draw)


def draw_maskfeat(rng: Key[Array, ""], params: Variables) -> Variables:
    """A ViT's params with the first weights of MaskFeat.

    All kernels, that of the patch embedding too, and the class token are normal of deviation 0.02. All biases of the
    blocks are 0.02.

    Source: the authors' code, SlowFast's video_model_builder.py.
    """

    def draw(key: Key[Array, ""], names: list[str], leaf: Array) -> Array:
        if names[-1] == "bias" and names[0].startswith("blocks_"):
            return jnp.full_like(leaf, 0.02)
        return weight_init(key, leaf.shape, leaf.dtype) if names[-1] in ("kernel", "cls_token", "reg_token") else leaf

    return _draw_leaves(rng, params, draw)


def beit_init(rng: Key[Array, ""], shape: Sequence[int], dtype: Any = float) -> Float[Array, "..."]:
    """Normal of deviation 0.02, cut off at -0.02 and 0.02. The numbers that are left have a deviation of 0.0108."""
    return BEIT_DEVIATION * jax.random.truncated_normal(rng, -1.0, 1.0, shape, dtype)


def _draw_leaves(
    rng: Key[Array, ""], params: Variables, draw: Callable[[Key[Array, ""], list[str], Array], Array]
) -> Variables:
    """`params` with each leaf replaced by draw(key, names, leaf). `names` is the path of the leaf."""
    flat = cast(tuple[list[tuple[Any, Array]], Any], jax.tree_util.tree_flatten_with_path(params))
    leaves, structure = flat
    keys = jax.random.split(rng, len(leaves))
    return structure.unflatten(
        [draw(key, [entry.key for entry in path], leaf) for (path, leaf), key in zip(leaves, keys, strict=True)]
    )

"""What methods ask of a ViT beyond timm's defaults."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ssl_jax.models.vit import weight_init

BEIT_DEVIATION = 0.02  # of a normal distribution that is cut off at one deviation


def draw_xavier(rng: Key[Array, ""], params: Any, *, split_qkv: bool) -> Any:
    """A ViT's params with every kernel drawn anew, uniform in +-sqrt(6 / (fan-in + fan-out)).

    The patch projection counts as a linear layer of a patch's pixels. split_qkv: queries, keys and values count as
    three layers (MoCo v3), else as one of three times the width (MAE).
    """

    def draw(key, names, leaf):
        if names[-1] != "kernel":
            return leaf
        fan_in, fan_out = leaf.size // leaf.shape[-1], leaf.shape[-1]
        if split_qkv and "qkv" in names:
            fan_out //= 3
        limit = math.sqrt(6 / (fan_in + fan_out))
        return jax.random.uniform(key, leaf.shape, leaf.dtype, -limit, limit)

    return _draw_leaves(rng, params, draw)


def draw_beit(rng: Key[Array, ""], params: Any) -> Any:
    """A ViT's params as BEiT's, data2vec's and SimMIM's begin: kernels (the patch embedding's included), the class
    token and learned positions of `beit_init`, and the last kernels of block l's two branches (l from 1) of that over
    sqrt(2 l).

    Source: Bao et al. 2021, arXiv:2106.08254, section 2.5, and the three authors' code.
    """

    def draw(key, names, leaf):
        if names[-1] not in ("kernel", "cls_token", "pos_embed"):
            return leaf
        found = re.fullmatch(r"blocks_(\d+)/(attn/proj|mlp/fc2)/kernel", "/".join(names))
        drawn = beit_init(key, leaf.shape, leaf.dtype)
        return drawn if found is None else drawn / math.sqrt(2 * (int(found[1]) + 1))

    return _draw_leaves(rng, params, draw)


def draw_maskfeat(rng: Key[Array, ""], params: Any) -> Any:
    """A ViT's params as MaskFeat's begin: kernels (the patch embedding's included) and the class token normal of
    deviation 0.02, all biases of the blocks 0.02.

    Source: the authors' code, SlowFast's video_model_builder.py.
    """

    def draw(key, names, leaf):
        if names[-1] == "bias" and names[0].startswith("blocks_"):
            return jnp.full_like(leaf, 0.02)
        return weight_init(key, leaf.shape, leaf.dtype) if names[-1] in ("kernel", "cls_token") else leaf

    return _draw_leaves(rng, params, draw)


def beit_init(rng: Key[Array, ""], shape: Sequence[int], dtype: Any = float) -> Float[Array, "..."]:
    """Normal of deviation 0.02, cut off at -0.02 and 0.02: what is left has a deviation of 0.0108."""
    return BEIT_DEVIATION * jax.random.truncated_normal(rng, -1.0, 1.0, shape, dtype)


def _draw_leaves(rng: Key[Array, ""], params: Any, draw: Callable[[Any, list[str], Any], Any]) -> Any:
    """draw(key, names, leaf) of each leaf, `names` being its path."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    keys = jax.random.split(rng, len(leaves))
    return structure.unflatten(
        [draw(key, [entry.key for entry in path], leaf) for (path, leaf), key in zip(leaves, keys, strict=True)]
    )

"""What methods ask of a ViT beyond timm's defaults."""

import math
import re
from typing import Any

import jax
from jaxtyping import Array, Key


def draw_xavier(rng: Key[Array, ""], params: Any, *, split_qkv: bool) -> Any:
    """A ViT's params with every kernel drawn anew, uniform in +-sqrt(6 / (fan-in + fan-out)).

    The patch projection counts as a linear layer of a patch's pixels. split_qkv: queries, keys and values count as
    three layers (MoCo v3), else as one of three times the width (MAE).
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)

    def draw(path, leaf, key):
        names = [entry.key for entry in path]
        if names[-1] != "kernel":
            return leaf
        fan_in, fan_out = leaf.size // leaf.shape[-1], leaf.shape[-1]
        if split_qkv and "qkv" in names:
            fan_out //= 3
        limit = math.sqrt(6 / (fan_in + fan_out))
        return jax.random.uniform(key, leaf.shape, leaf.dtype, -limit, limit)

    keys = jax.random.split(rng, len(leaves))
    return structure.unflatten([draw(path, leaf, key) for (path, leaf), key in zip(leaves, keys, strict=True)])


def shrink_branches(params: Any) -> Any:
    """The last kernels of block l's two branches (l from 1) over sqrt(2 l): BEiT's initialization.

    Source: Bao et al. 2021, arXiv:2106.08254, section 2.5; I-JEPA's code.
    """

    def scale(path, leaf):
        found = re.search(r"blocks_(\d+)/(attn/proj|mlp/fc2)/kernel$", "/".join(entry.key for entry in path))
        return leaf if found is None else leaf / math.sqrt(2 * (int(found[1]) + 1))

    return jax.tree_util.tree_map_with_path(scale, params)

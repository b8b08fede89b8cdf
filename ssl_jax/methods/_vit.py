"""What methods ask of a ViT beyond timm's defaults."""

import math
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
    """A ViT's params with the last kernel of each branch of block l = 1, 2, ... divided by sqrt(2 l): BEiT's start.

    So the sum of the branches grows more slowly with their number. Source: Bao et al. 2021, arXiv:2106.08254, section
    2.5.
    """
    blocks = {}
    for name in [name for name in params if name.startswith("blocks_")]:
        factor = 1.0 / math.sqrt(2.0 * (1 + int(name.removeprefix("blocks_"))))
        blocks[name] = dict(params[name])
        for branch, last in (("attn", "proj"), ("mlp", "fc2")):
            layer = params[name][branch][last]
            shrunk = {**layer, "kernel": factor * layer["kernel"]}
            blocks[name][branch] = {**params[name][branch], last: shrunk}
    return {**params, **blocks}

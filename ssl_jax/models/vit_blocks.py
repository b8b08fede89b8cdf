"""The blocks of a vision transformer: one after the other, as one loop, or on one microbatch after the other.

Functions of the module, as its parts: blocks have their names and parameters in it.
"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from ssl_jax.models.blocks import Block
from ssl_jax.models.positions import Rope
from ssl_jax.models.recompute import block_of, group_of, group_size, loop_of
from ssl_jax.ops.shards import gather_all, gather_before_loop, has_shards

if TYPE_CHECKING:
    from ssl_jax.models.vit import ViT


class Group(NamedTuple):
    """Images of one size on their way through the blocks.

    x: [batch, tokens, dim]. drops: `drop` of each block. attend, rope: as in `Block`.
    """

    x: Array
    drops: Any
    attend: Array | None
    rope: Rope | None


def run(vit: "ViT", groups: Sequence[Group], bias: Array | None, count: int, train: bool) -> Any:
    """Outputs of the last `count` blocks: for each block, those of each group, [batch, tokens, dim].

    In training, the blocks run as `vit.scan` and `vit.microbatch` say. bias: of attention, as in `Block`.
    Raises: ValueError for a microbatch that does not divide the images.
    """
    if not train or not (vit.microbatch or vit.scan):
        return _one_by_one(vit, groups, bias, count)
    way = _in_turn if vit.microbatch else _as_loop
    if has_shards(vit.variables):
        way = nn.map_variables(way, "params", gather_before_loop)
    return way(vit, groups, bias, count)


def _one_by_one(vit: "ViT", groups: Sequence[Group], bias: Array | None, count: int) -> Any:
    xs, outputs = [group.x for group in groups], []
    run_some = group_of(_some, vit.remat, constants=(4, 5))
    size = group_size(vit.depth, vit.remat)
    for first in range(0, vit.depth, size):
        xs, found = run_some(vit, xs, groups, bias, range(first, first + size), vit.depth - count)
        outputs += found
    return outputs


def _some(
    vit: "ViT", xs: Sequence[Array], groups: Sequence[Group], bias: Array | None, numbers: range, wanted: int
) -> tuple[Sequence[Array], list[Sequence[Array]]]:
    """(last output, outputs of the blocks from `wanted` on) of some of the blocks in a row."""
    block, outputs = block_of(Block, vit.remat), []
    for i in numbers:
        one = block(**vit.block_options, name=f"blocks_{i}")
        xs = [one(x, group.drops[i], group.attend, bias, group.rope) for x, group in zip(xs, groups, strict=True)]
        outputs += [xs] * (i >= wanted)
    return xs, outputs


def _as_loop(vit: "ViT", groups: Sequence[Group], bias: Array | None, count: int) -> Any:
    """One loop over the stacked parameters of the blocks."""
    of_blocks = [vit.variables["params"][f"blocks_{i}"] for i in range(vit.depth)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *of_blocks)
    block = Block(**vit.block_options, parent=None)

    def step(xs: Any, of_block: Any) -> tuple[Any, Any]:
        params, drops = of_block
        params = gather_all(params)
        xs = [
            block.apply({"params": params}, x, drop, group.attend, bias, group.rope)
            for x, drop, group in zip(xs, drops, groups, strict=True)
        ]
        return xs, xs if count > 1 else None

    # Within Flax's scan over microbatches, `x` may have fewer varying axes than the loop's result. Both must match.
    varying = set().union(*(jax.typeof(leaf).manual_axis_type.varying for leaf in jax.tree.leaves(stacked)))

    def vary(x: Array) -> Array:
        missing = varying - jax.typeof(x).manual_axis_type.varying
        return lax.pcast(x, tuple(missing), to="varying") if missing else x

    by_block = [None if group.drops[0] is None else jnp.stack(group.drops) for group in groups]
    inputs, body = (stacked, by_block), loop_of(step, vit.remat)
    if vit.remat == "full":  # a loop over groups, each a loop over its blocks
        size = group_size(vit.depth, vit.remat)
        inputs = jax.tree.map(lambda a: a.reshape(-1, size, *a.shape[1:]), inputs)
        body = loop_of(functools.partial(lax.scan, body), vit.remat)
    last, outputs = lax.scan(body, [vary(group.x) for group in groups], inputs)
    if count == 1:
        return [last]
    outputs = jax.tree.map(lambda a: a.reshape(vit.depth, *a.shape[-3:]), outputs)
    return [[of_group[i] for of_group in outputs] for i in range(vit.depth - count, vit.depth)]


def _in_turn(vit: "ViT", groups: Sequence[Group], bias: Array | None, count: int) -> Any:
    """One microbatch after the other; for one group."""
    ((x, drops, attend, rope),) = groups
    batch, size = len(x), vit.microbatch
    if batch % size:
        raise ValueError(f"microbatch={size} does not divide the {batch} images of a device; use a divisor of {batch}")
    # What has one row is the same for all images, and no part of a chunk.
    of_images, tree = jax.tree.flatten((attend, rope))
    own = [array if len(array) > 1 else None for array in of_images]

    def step(vit: Any, _: None, chunk: Any) -> tuple[None, Any]:
        x, drops, own = chunk
        parts = [array if part is None else part for array, part in zip(of_images, own, strict=True)]
        group = Group(x, drops, *jax.tree.unflatten(tree, parts))
        return None, (_as_loop if vit.scan else _one_by_one)(vit, [group], bias, count)

    chunks = jax.tree.map(lambda a: a.reshape(batch // size, -1, *a.shape[1:]), (x, drops, own))
    scan = nn.scan(nn.remat(step, prevent_cse=False), variable_broadcast="params", split_rngs={"params": False})
    _, outputs = scan(vit, None, chunks)
    return jax.tree.map(lambda a: a.reshape(batch, *a.shape[2:]), outputs)

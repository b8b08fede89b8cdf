"""Parameters that are sharded over devices, and where they are gathered."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
from jax import lax

REPLICATED = -1  # in place of the axis that a leaf is sharded along: every device has the whole leaf


class Shard(flax.struct.PyTreeNode):
    """A shard that stands in for a parameter. The module that owns the parameter gathers it.

    in_loops: whether it may be gathered in each iteration of a loop. XLA's CPU backend (JAX 0.10.2) mixes up a loop's
    collectives with others that run at the same time, and sometimes aborts.
    """

    value: Any
    axis: int = flax.struct.field(pytree_node=False)
    axis_name: str = flax.struct.field(pytree_node=False)
    in_loops: bool = flax.struct.field(pytree_node=False)

    def gathered(self, to: str = "varying") -> Any:
        return lax.all_gather(self.value, self.axis_name, axis=self.axis, tiled=True, to=to)


def is_shard(x: Any) -> bool:
    return isinstance(x, Shard)


def has_shards(tree: Any) -> bool:
    return any(map(is_shard, jax.tree.leaves(tree, is_leaf=is_shard)))


def _map_shards(function: Callable[[Shard], Any], tree: Any) -> Any:
    return jax.tree.map(lambda x: function(x) if is_shard(x) else x, tree, is_leaf=is_shard)


def gather_all(tree: Any) -> Any:
    """The tree with its shards gathered. Their gradients are summed over devices and sharded again."""
    return _map_shards(lambda shard: shard.gathered(), tree)


def gather_before_loop(tree: Any) -> Any:
    """The tree with all shards gathered that must not be gathered within a loop."""
    return _map_shards(lambda shard: shard if shard.in_loops else shard.gathered(), tree)


def values(tree: Any) -> Any:
    """The tree with each shard's values in its place."""
    return _map_shards(lambda shard: shard.value, tree)


def gathered_late(path: Sequence[Any]) -> bool:
    """Whether a leaf of a state is gathered by its module.

    Leaves of transformer blocks are: one block after the other and, with remat, again in the backward pass. All other
    leaves are gathered before a method gets them.
    """
    return any(re.fullmatch(r"blocks_\d+", getattr(entry, "key", "")) for entry in path)


def gather(tree: Any, axes: Any, axis_name: str, *, to: str, in_loops: bool) -> Any:
    """The tree with each leaf gathered along its axis. A leaf that is gathered late becomes a `Shard`.

    Leaves whose axis is REPLICATED stay as they are.

    to: "invarying" marks the gathered leaves as the same on all devices. "varying" marks them as each device's own:
    their gradient is summed over the devices and sharded again. in_loops: as in `Shard`.
    """

    def one(path, x, axis):
        if axis == REPLICATED:
            return x
        shard = Shard(x, axis, axis_name, in_loops)
        return shard if gathered_late(path) else shard.gathered(to)

    return jax.tree_util.tree_map_with_path(one, tree, axes)

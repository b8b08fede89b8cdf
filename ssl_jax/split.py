"""Parameters of which each device has a part, on their way to where they are used."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
from jax import lax

WHOLE = -1  # in place of the axis that a leaf is split along: it is on every device


class Part(flax.struct.PyTreeNode):
    """This device's part of a parameter, in the parameter's place in a tree: its module makes it whole.

    in_loops: whether it may do so in each round of a loop. XLA's CPU backend (JAX 0.10.2) mixes up collectives of a
    loop with others that run beside it, and aborts now and then.
    """

    value: Any
    axis: int = flax.struct.field(pytree_node=False)
    axis_name: str = flax.struct.field(pytree_node=False)
    in_loops: bool = flax.struct.field(pytree_node=False)

    def whole(self, to: str = "varying") -> Any:
        return lax.all_gather(self.value, self.axis_name, axis=self.axis, tiled=True, to=to)


def is_part(x: Any) -> bool:
    return isinstance(x, Part)


def has_parts(tree: Any) -> bool:
    return any(map(is_part, jax.tree.leaves(tree, is_leaf=is_part)))


def _map_parts(function: Callable[[Part], Any], tree: Any) -> Any:
    return jax.tree.map(lambda x: function(x) if is_part(x) else x, tree, is_leaf=is_part)


def whole(tree: Any) -> Any:
    """The tree with its parts gathered from all devices; their gradients are summed over them and split again."""
    return _map_parts(lambda part: part.whole(), tree)


def before_loop(tree: Any) -> Any:
    """The tree with those parts gathered that may not be in a loop."""
    return _map_parts(lambda part: part if part.in_loops else part.whole(), tree)


def values(tree: Any) -> Any:
    """The tree with what this device has of its parts."""
    return _map_parts(lambda part: part.value, tree)


def gathered_late(path: Sequence[Any]) -> bool:
    """Whether a leaf of a state is gathered by its module: those of transformers' blocks are, one block after the
    other and, with remat, again in the backward pass. All others are whole when a method gets them."""
    return any(re.fullmatch(r"blocks_\d+", getattr(entry, "key", "")) for entry in path)


def gather(tree: Any, axes: Any, axis_name: str, *, to: str, in_loops: bool) -> Any:
    """The leaves, of which each device has a part along an axis, or all (WHOLE), whole on every device, or a `Part`
    where they are gathered late.

    to: "invarying" for leaves that are known to be the same everywhere, "varying" for each device's own, whose gradient
    is summed over the devices and split again. in_loops: as of `Part`.
    """

    def one(path, x, axis):
        if axis == WHOLE:
            return x
        part = Part(x, axis, axis_name, in_loops)
        return part if gathered_late(path) else part.whole(to)

    return jax.tree_util.tree_map_with_path(one, tree, axes)

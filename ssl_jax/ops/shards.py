"""Arrays that are sharded over devices: where parameters are gathered and how their gradients are summed, and banks,
which no device has whole."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import numpy as np
from jax import lax

REPLICATED = -1  # in place of the axis that a leaf is sharded along: every device has the whole leaf


@dataclasses.dataclass(frozen=True)
class Torus:
    """Where the devices of a mapped axis lie: hosts along each axis of the torus, and chips along each axis of a host.

    Devices count up through the chips of a host and then through the hosts, both with the last axis fastest.
    """

    hosts: tuple[int, ...]
    chips: tuple[int, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Chips along each axis of the torus."""
        return tuple(np.multiply(self.hosts, self.chips).tolist())

    def lines(self, axis: int) -> list[list[int]]:
        """The devices of each line along this axis of the torus."""
        count = len(self.sizes)
        devices = np.arange(np.prod(self.sizes)).reshape(*self.hosts, *self.chips)
        return np.moveaxis(devices, (axis, count + axis), (-2, -1)).reshape(-1, self.sizes[axis]).tolist()


@dataclasses.dataclass(frozen=True)
class Route:
    """How shards are gathered over the devices of `axis_name`, and their gradients summed and sharded again.

    torus: None if it is not known, or its links do not matter.
    dtype: in which gradients are sent and summed, "float32" or "bfloat16".
    in_loops: whether shards may be gathered in each iteration of a loop. XLA's CPU backend (JAX 0.10.2) mixes up a
      loop's collectives with others that run at the same time, and sometimes aborts.
    """

    axis_name: str
    torus: Torus | None = None
    dtype: str = "float32"
    in_loops: bool = True


class Shard(flax.struct.PyTreeNode):
    """A shard that stands in for a parameter or a bank. The module that owns the parameter gathers it; of a bank, each
    device reads and writes its own rows."""

    value: Any
    axis: int = flax.struct.field(pytree_node=False)
    route: Route = flax.struct.field(pytree_node=False)

    def gathered(self) -> Any:
        return gather_one(self.value, self.axis, self.route)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gather_one(value: Any, axis: int, route: Route) -> Any:
    """The whole of an array that is sharded along `axis`. Its gradient is summed over the devices and sharded again."""
    return lax.all_gather(value, route.axis_name, axis=axis, tiled=True)


def _gather_one(value: Any, axis: int, route: Route) -> tuple[Any, None]:
    return gather_one(value, axis, route), None


def _sum_and_shard(axis: int, route: Route, _: None, gradient: Any) -> tuple[Any]:
    return (sum_and_shard(gradient.astype(route.dtype), axis, route).astype(gradient.dtype),)


gather_one.defvjp(_gather_one, _sum_and_shard)


def sum_and_shard(x: Any, axis: int, route: Route) -> Any:
    """The sum of `x` over devices, of which each device gets its part along `axis`."""
    if route.torus is None:
        return lax.psum_scatter(x, route.axis_name, scatter_dimension=axis, tiled=True)
    return _scatter_along_lines(x, axis, route.axis_name, route.torus)


def _scatter_along_lines(x: Any, axis: int, axis_name: str, torus: Torus) -> Any:
    """lax.psum_scatter(x, axis_name, scatter_dimension=axis, tiled=True), along one axis of the torus after the other.

    libtpu (0.0.52) makes of a psum_scatter over a whole torus an all-reduce, which sends twice as much.
    """
    count = len(torus.sizes)
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    x = x.reshape(*before, *torus.hosts, *torus.chips, -1, *after)
    together = np.arange(2 * count).reshape(2, count).T.ravel()  # hosts and chips of each axis of the torus
    x = x.transpose(*range(axis), *(axis + together).tolist(), *range(axis + 2 * count, x.ndim))
    x = x.reshape(*before, *torus.sizes, -1, *after)
    for line_axis in range(count):
        x = lax.psum_scatter(x, axis_name, scatter_dimension=axis, axis_index_groups=torus.lines(line_axis))
    return x


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
    return _map_shards(lambda shard: shard if shard.route.in_loops else shard.gathered(), tree)


def values(tree: Any) -> Any:
    """The tree with each shard's values in its place."""
    return _map_shards(lambda shard: shard.value, tree)


def gathered_late(path: Sequence[Any]) -> bool:
    """Whether a leaf of a state is gathered by its module.

    Leaves of transformer blocks are: one block after the other and, with remat, again in the backward pass. All other
    leaves but banks are gathered before a method gets them.
    """
    return any(re.fullmatch(r"blocks_\d+", getattr(entry, "key", "")) for entry in path)


def divided(tree: Any, axes: Any, banks: Mapping[str, int]) -> Any:
    """For each leaf of a whole state whether it is a bank's and stays sharded within the step.

    axes: see `gather`. banks: {entry of the state: rows of its arrays}. Where an array of these is not sharded along
    its rows, as may be with few images, no bank stays sharded.
    """

    def along_rows(x, axis, rows):
        return not rows or (axis != REPLICATED and x.shape[axis] == rows)

    rows = jax.tree_util.tree_map_with_path(lambda path, _: banks.get(getattr(path[0], "key", ""), 0), tree)
    all_along = all(jax.tree.leaves(jax.tree.map(along_rows, tree, axes, rows)))
    return jax.tree.map(lambda rows: bool(rows) and all_along, rows)


def gather(tree: Any, axes: Any, route: Route, *, to: str, divided: Any = None) -> Any:
    """The tree with each leaf gathered along its axis. A leaf that is gathered late becomes a `Shard`.

    Leaves whose axis is REPLICATED stay as they are.

    to: "invarying" marks the gathered leaves as the same on all devices. "varying" marks them as each device's own:
    their gradient is summed over the devices and sharded again.
    divided: for each leaf whether it becomes a `Shard`, too, and is never gathered; see the function. None: no leaf.
    """
    divided = jax.tree.map(lambda _: False, tree) if divided is None else divided

    def one(path, x, axis, is_divided):
        if axis == REPLICATED:
            return x
        if is_divided or gathered_late(path):
            return Shard(x, axis, route)
        if to == "invarying":
            return lax.all_gather(x, route.axis_name, axis=axis, tiled=True, to=to)
        return gather_one(x, axis, route)

    return jax.tree_util.tree_map_with_path(one, tree, axes, divided)


class Divided(flax.struct.PyTreeNode):
    """A whole bank outside of shard_map, whose rows are sharded along `axis`. `on_devices` gives each device its own.

    run: (function, axes, state, *others) -> what `on_devices` returns; axes: of the state's leaves, as in `gather`.
    """

    value: Any
    axis: int = flax.struct.field(pytree_node=False)
    run: Callable[..., Any] = flax.struct.field(pytree_node=False)


def _is_divided(x: Any) -> bool:
    return isinstance(x, Divided)


def on_devices(
    function: Callable[..., Any], state: Mapping[str, Any], entries: Sequence[str], *others: Any
) -> dict[str, Any]:
    """The state, in which `function(part, *others, axis_name=...)` has changed these entries on each device.

    Outside of shard_map. part: these entries. The function gets arrays, of each `Divided` leaf a device's own rows, and
    gives a part of the same structure. All but these rows must be the same on every device. Where no leaf is divided,
    there is one call, and axis_name is None.
    """
    part = {name: state[name] for name in entries}
    banks = [leaf for leaf in jax.tree.leaves(part, is_leaf=_is_divided) if _is_divided(leaf)]
    if not banks:
        return {**state, **function(part, *others, axis_name=None)}
    axes = jax.tree.map(lambda x: x.axis if _is_divided(x) else REPLICATED, part, is_leaf=_is_divided)
    new = banks[0].run(function, axes, whole(part), *others)
    new = jax.tree.map(lambda x, new: x.replace(value=new) if _is_divided(x) else new, part, new, is_leaf=_is_divided)
    return {**state, **new}


def divide(tree: Any, axes: Any, divided: Any, run: Callable[..., Any]) -> Any:
    """The tree, outside of shard_map, with `Divided` in place of each leaf that stays sharded: see `divided`."""
    return jax.tree.map(lambda x, axis, is_divided: Divided(x, axis, run) if is_divided else x, tree, axes, divided)


def whole(tree: Any) -> Any:
    """The tree with each `Divided` bank's array in its place."""
    return jax.tree.map(lambda x: x.value if _is_divided(x) else x, tree, is_leaf=_is_divided)

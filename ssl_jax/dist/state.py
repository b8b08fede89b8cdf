"""The train step over the mesh, and its state: replicated, or sharded over the devices (ZeRO-3)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.core import eval_jaxpr
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ssl_jax import compiled
from ssl_jax.dist.mesh import AXIS, find_torus
from ssl_jax.ops import shards
from ssl_jax.ops.shards import REPLICATED

SHARDED_FROM = 512  # leaves of fewer numbers are replicated


def map_step(step: Any, mesh: Mesh, *, shard_state: bool = False) -> Callable[[Any, Any], tuple[Any, Any]]:
    """A `step.TrainStep` over the mesh: (state, batch) -> (state, metrics).

    The batch is sharded over the devices; the metrics are replicated.
    Each device computes the gradients under shard_map. XLA divides the rest of the step as the state is divided:
    replicated, or with `shard_state` sharded as `shard_axes` says.
    The state's buffers are donated: use the returned state only. The step has compiler options of its own, which JAX
    takes of the outermost `jax.jit` only: do not call it within another. When traced, the check of varying axes
    (check_vma) refuses a step whose new state would differ between devices.
    """
    replicated, sharded = PartitionSpec(), PartitionSpec(AXIS)
    devices = list(mesh.devices.flat)
    torus, in_loops = find_torus(devices), devices[0].platform != "cpu"

    def on_devices(function: Callable[..., Any], axes: Any, state: Any, *others: Any) -> Any:
        specs = jax.tree.map(_spec, axes)
        mapped = jax.shard_map(
            functools.partial(function, axis_name=AXIS),
            mesh=mesh,
            in_specs=(specs, *[replicated] * len(others)),
            out_specs=specs,
            check_vma=True,
        )
        return mapped(state, *others)

    def mapped(state: Any, batch: Any) -> tuple[Any, Any]:
        axes = shard_axes(state, mesh.size if shard_state else 1)
        specs = jax.tree.map(_spec, axes)
        divided = shards.divided(state.model_state, axes.model_state, step.method.banks)
        late = jax.tree_util.tree_map_with_path(
            lambda path, spec, divided: spec if divided or shards.gathered_late(path) else replicated,
            specs.model_state,
            divided,
        )
        gradients = jax.shard_map(
            lambda state, batch: step.gradients(state, batch, axes, divided, torus=torus, in_loops=in_loops),
            mesh=mesh,
            in_specs=(specs, sharded),
            out_specs=(specs.params, {"model_state": late, "metrics": replicated, "finite": replicated}),
            check_vma=True,
        )
        grads, found = gradients(state, batch)
        model_state = shards.divide(found["model_state"], axes.model_state, divided, on_devices)
        new, metrics = step.apply(state, grads, {**found, "model_state": model_state})
        return lax.with_sharding_constraint(new, _state_shardings(new, mesh, shard_state)), metrics

    return jax.jit(mapped, donate_argnums=0, compiler_options=compiled.options_of_steps(devices[0].platform))


def shard_axes(tree: Any, devices: int) -> Any:
    """For each leaf, the axis that is sharded over that many devices: the longest whose size they divide.

    REPLICATED if there is none. Also for leaves of fewer than SHARDED_FROM numbers: they cost more to gather than to
    keep.
    """

    def axis(leaf: Any) -> int:
        divided = [n for n, size in enumerate(leaf.shape) if size % devices == 0]
        if devices == 1 or leaf.size < SHARDED_FROM or not divided:
            return REPLICATED
        return max(divided, key=lambda n: leaf.shape[n])

    return jax.tree.map(axis, tree)


def _spec(axis: int) -> PartitionSpec:
    return PartitionSpec() if axis == REPLICATED else PartitionSpec(*[None] * axis, AXIS)


def _state_shardings(shapes: Any, mesh: Mesh, shard_state: bool) -> Any:
    axes = shard_axes(shapes, mesh.size if shard_state else 1)
    return jax.tree.map(lambda axis: NamedSharding(mesh, _spec(axis)), axes)


def create_state(create: Callable[..., Any], mesh: Mesh, *arrays: Any, shard_state: bool = False) -> Any:
    """Creates the state, `create(*arrays)`, in its sharding. Its values do not depend on the mesh.

    The state is replicated. With `shard_state` it is sharded, and no device ever holds the whole state.

    Args:
      arrays: trees of NumPy arrays, the same in every process. Were they constants of `create`, XLA would have to
        compile all their numbers.
    """
    traced, shapes = jax.make_jaxpr(create, return_shape=True)(*arrays)
    leaves, structure = jax.tree.flatten(_state_shardings(shapes, mesh, shard_state))

    # Arrays that `create` refers to, such as a teacher's weights, are arguments. Otherwise each would be a part of the
    # compiled program, of which XLA refuses more than 2 GB.
    def run(constants: Any, given: Any) -> Any:
        return eval_jaxpr(traced.jaxpr, constants, *given)

    options = compiled.options_of_once(mesh.devices.flat[0].platform)
    created = jax.jit(run, out_shardings=leaves, compiler_options=options)(traced.consts, jax.tree.leaves(arrays))
    return jax.tree.unflatten(structure, created)


def state_shapes(create: Callable[..., Any], mesh: Mesh, *arrays: Any, shard_state: bool = False) -> Any:
    """The shapes, types and shardings (`jax.ShapeDtypeStruct`) of `create_state` with these arguments."""
    shapes = jax.eval_shape(create, *arrays)
    return _placed(shapes, _state_shardings(shapes, mesh, shard_state))


def gather_state(tree: Any, mesh: Mesh) -> Any:
    """A tree of arrays on the mesh, gathered whole on every device. Every process must call it."""
    if all(leaf.is_fully_replicated for leaf in jax.tree.leaves(tree)):
        return tree
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))(tree)


def compile_step(
    step: Any,
    mesh: Mesh,
    state: Any,
    batch: Any,
    *,
    shard_state: bool = False,
    compiler_options: dict[str, Any] | None = None,
) -> jax.stages.Compiled:
    """`map_step(step, mesh)` compiled for a state and a global batch of these shapes (`jax.ShapeDtypeStruct`)."""

    placed = _placed(state, _state_shardings(state, mesh, shard_state))
    rows = _placed(batch, jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec(AXIS)), batch))
    return map_step(step, mesh, shard_state=shard_state).lower(placed, rows).compile(compiler_options)


def _placed(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, on: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on), shapes, shardings)

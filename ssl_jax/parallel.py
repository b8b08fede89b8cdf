"""Devices: the mesh, the mapping of a per-device step over it, and the placing of arrays on it.

Everything else in ssl_jax is written for one device of a named axis and knows no mesh.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "data"  # the mapped axis that batches are split over


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """The devices along one axis; all of all processes if not given."""
    # Not jax.make_mesh: its axes are explicit, and shard_map then refuses arrays that were not placed by hand.
    return Mesh(np.asarray(jax.devices() if devices is None else devices), (AXIS,))


def map_step(step: Callable[[Any, Any], tuple[Any, Any]], mesh: Mesh) -> Callable[[Any, Any], tuple[Any, Any]]:
    """The per-device `step(state, batch) -> (state, metrics)` over the mesh: batch split, the rest replicated.

    The state's buffers are donated: use the returned state only. The check of varying axes (check_vma) refuses, when
    traced, a step whose new state would differ between devices.
    """
    replicated, split = PartitionSpec(), PartitionSpec(AXIS)
    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=(replicated, split), out_specs=(replicated, replicated), check_vma=True
    )
    return jax.jit(mapped, donate_argnums=0)


def described_devices(topology: str) -> Sequence[Any]:
    """The devices of a TPU slice, "v5e:16x16", that is not there: to compile for, not to run on. Needs libtpu."""
    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices


def compile_step(
    step: Callable[[Any, Any], tuple[Any, Any]], mesh: Mesh, state: Any, batch: Any
) -> jax.stages.Compiled:
    """`map_step(step, mesh)` compiled for a state and a global batch of these shapes (`jax.ShapeDtypeStruct`)."""

    def place(tree, spec):
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

    lowered = map_step(step, mesh).lower(place(state, PartitionSpec()), place(batch, PartitionSpec(AXIS)))
    return lowered.compile()


def map_rows(function: Callable[[Any, Any], Any], mesh: Mesh) -> Callable[[Any, Any], Any]:
    """`function(variables, rows) -> rows` over the mesh: each device computes its share of the rows."""
    replicated, split = PartitionSpec(), PartitionSpec(AXIS)
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=(replicated, split), out_specs=split, check_vma=True))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A copy of `tree` on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def split_batch(batch: Any, mesh: Mesh) -> Any:
    """This process's rows [local_batch, ...] as its share of arrays [batch, ...] that are split over the mesh."""
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)

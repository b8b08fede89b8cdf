"""The mesh: its one axis, arrays on it, and functions of rows mapped over it."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ssl_jax.ops.shards import Torus

AXIS = "data"  # the mapped axis that batches are sharded over


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of the devices along one axis. The default is all devices of all processes, process by process, so that
    each process has successive rows of a batch."""
    # Not jax.make_mesh: its axes are explicit, and shard_map then refuses arrays that were not placed by hand.
    if devices is None:
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.asarray(devices), (AXIS,))


def make_local_mesh() -> Mesh:
    """A mesh of this process's devices, for what it computes without the others."""
    return Mesh(jax.local_devices(), (AXIS,))


def find_torus(devices: Sequence[Any]) -> Torus | None:
    """Where the devices of a mesh lie on the torus of a TPU slice.

    None if they are no TPUs, not one whole slice, or in another order than that of a `Torus`, which `make_mesh` gives.
    """
    if devices[0].platform != "tpu" or len(devices) == 1:
        return None
    places = np.asarray([device.coords for device in devices])[:, ::-1]  # the x axis counts up fastest
    sizes = np.ptp(places, axis=0) + 1
    chips = np.ptp(places[[device.process_index == devices[0].process_index for device in devices]], axis=0) + 1
    if math.prod(sizes) != len(devices) or np.any(sizes % chips):
        return None
    hosts = sizes // chips
    # The place of each device, had they the order of a Torus.
    digits = np.stack(np.unravel_index(np.arange(len(devices)), (*hosts, *chips)), axis=1)
    count = len(sizes)
    expected = digits[:, :count] * chips + digits[:, count:]
    if not np.array_equal(places - places.min(axis=0), expected):
        return None
    several = np.flatnonzero(sizes > 1)  # axes of one chip have no links
    return Torus(tuple(hosts[several].tolist()), tuple(chips[several].tolist()))


def described_devices(topology: str, cores: int) -> Sequence[Any]:
    """The devices of a TPU slice that is not there, as "v5e:16x16": to compile for, not to run on. Needs libtpu.

    cores: of a chip. Two cores are one device, as at run time ("megacore"); else libtpu describes a v4 chip as two.
    """
    chip = "megacore" if cores == 2 else "default"
    return topologies.get_topology_desc(platform="tpu", topology_name=topology, chip_config_name=chip).devices


def described_gpus(name: str, target: str, machines: int, each: int) -> Sequence[Any]:
    """The GPUs of machines that are not there: to compile for, not to run on. Needs JAX's plugin for CUDA, not CUDA.

    target: the card, as XLA's GpuTargetConfigProto. machines, each: how many, and the GPUs of each.
    """
    topology = f"1x{machines}x{each}"
    return topologies.get_topology_desc(
        platform="cuda", topology_name=name, target_config=target, topology=topology
    ).devices


def map_rows(function: Callable[[Any, Any], Any], mesh: Mesh) -> Callable[[Any, Any], Any]:
    """`function(variables, rows) -> rows` over the mesh: each device computes its own rows."""
    replicated, sharded = PartitionSpec(), PartitionSpec(AXIS)
    return jax.jit(
        jax.shard_map(function, mesh=mesh, in_specs=(replicated, sharded), out_specs=sharded, check_vma=True)
    )


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A copy of `tree`, the same in every process, on every device of the mesh."""
    sharding = NamedSharding(mesh, PartitionSpec())
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    # With devices of other processes, device_put would send each leaf around to compare it.
    def place(leaf: Any) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        return jax.make_array_from_callback(leaf.shape, sharding, np.asarray(leaf).__getitem__)

    return jax.tree.map(place, tree)


def own_devices(tree: Any, mesh: Mesh) -> Any:
    """Puts a tree that is replicated over the devices of all processes on `mesh`, a mesh of this process's devices.
    Nothing is copied."""
    sharding = NamedSharding(mesh, PartitionSpec())

    def place(leaf: Any) -> jax.Array:
        copies = {shard.device: shard.data for shard in leaf.addressable_shards}
        return jax.make_array_from_single_device_arrays(
            leaf.shape, sharding, [copies[device] for device in mesh.devices.flat]
        )

    return jax.tree.map(place, tree)


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Arrays [batch, ...] sharded over the mesh. `batch`: this process's rows of them, [local_batch, ...]."""
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)

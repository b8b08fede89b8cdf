"""Devices and processes. Only this package names a mesh or a sharding.

Everything else in ssl_jax is written for one device of a named axis.
"""

from ssl_jax.dist.agreement import Agreement
from ssl_jax.dist.mesh import (
    AXIS,
    Mesh,
    described_devices,
    make_local_mesh,
    make_mesh,
    map_rows,
    own_devices,
    replicate,
    shard_batch,
)
from ssl_jax.dist.processes import (
    NOT_MET,
    ProcessError,
    check_same,
    gather_facts,
    gather_rows,
    is_first,
    leaving_on_error,
    start_processes,
    wait_for_all,
)
from ssl_jax.dist.state import compile_step, create_state, gather_state, map_step, shard_axes

__all__ = [
    "AXIS",
    "NOT_MET",
    "Agreement",
    "Mesh",
    "ProcessError",
    "check_same",
    "compile_step",
    "create_state",
    "described_devices",
    "gather_facts",
    "gather_rows",
    "gather_state",
    "is_first",
    "leaving_on_error",
    "make_local_mesh",
    "make_mesh",
    "map_rows",
    "map_step",
    "own_devices",
    "replicate",
    "shard_axes",
    "shard_batch",
    "start_processes",
    "wait_for_all",
]

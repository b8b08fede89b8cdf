"""Devices and processes. Only this package names a mesh or a sharding.

Everything else in ssl_jax is written for one device of a named axis.
"""

from ssl_jax.dist.accelerators import PLATFORMS, PlatformError, check_platform, missing_plugin, use_platform
from ssl_jax.dist.agreement import Agreement, everyones
from ssl_jax.dist.heartbeats import GONE, NO_ANSWER, Heartbeat, called, read_heartbeats, say_ended, send_heartbeat
from ssl_jax.dist.mesh import (
    AXIS,
    Mesh,
    described_devices,
    described_gpus,
    make_local_mesh,
    make_mesh,
    map_rows,
    own_devices,
    replicate,
    shard_batch,
)
from ssl_jax.dist.processes import (
    NOT_MET,
    STUCK,
    ProcessError,
    check_same,
    gather_facts,
    gather_rows,
    hosts,
    is_first,
    leaving_on_error,
    start_processes,
    wait_for_all,
)
from ssl_jax.dist.state import compile_step, create_state, gather_state, map_step, shard_axes, state_shapes

__all__ = [
    "AXIS",
    "GONE",
    "NOT_MET",
    "NO_ANSWER",
    "PLATFORMS",
    "STUCK",
    "Agreement",
    "Heartbeat",
    "Mesh",
    "PlatformError",
    "ProcessError",
    "called",
    "check_platform",
    "check_same",
    "compile_step",
    "create_state",
    "described_devices",
    "described_gpus",
    "everyones",
    "gather_facts",
    "gather_rows",
    "gather_state",
    "hosts",
    "is_first",
    "leaving_on_error",
    "make_local_mesh",
    "make_mesh",
    "map_rows",
    "map_step",
    "missing_plugin",
    "own_devices",
    "read_heartbeats",
    "replicate",
    "say_ended",
    "send_heartbeat",
    "shard_axes",
    "shard_batch",
    "start_processes",
    "state_shapes",
    "use_platform",
    "wait_for_all",
]

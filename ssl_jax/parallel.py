"""Devices and processes: the mesh, the mapping of a per-device step over it, arrays on it; starting, and agreeing.

Everything else in ssl_jax is written for one device of a named axis and knows no mesh.
"""

import collections
import contextlib
import glob
import importlib.util
import json
import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.experimental import multihost_utils, topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Shaped

from ssl_jax.split import WHOLE, gathered_late

AXIS = "data"  # the mapped axis that batches are split over
SPLIT_SIZE = 512  # leaves of fewer numbers are on every device
NOT_MET = os.EX_UNAVAILABLE  # 69, the exit code of a process that waited in vain; launch/common.sh has it too


class ProcessError(RuntimeError):
    """Processes that cannot work together; its text is for the user."""


def start_processes(
    coordinator: str = "", num_processes: str = "", process_id: str = "", *, wait_seconds: float = 300.0
) -> None:
    """Joins this process to the others of the run, where there are others; before anything else is done with JAX.

    Where they meet is taken from the arguments, else from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID;
    else from SLURM, for the several tasks of one `srun`; else from the TPU pod that this machine is a worker of. Where
    none of these says anything the run has one process.

    Args:
      coordinator: HOST:PORT of process 0, as the other machines reach it.
      num_processes, process_id: n, and 0 to n - 1; digits, as a command line has them.
      wait_seconds: after which a process that waits for others ends the program, with the likely causes.
    Raises: ProcessError for what cannot be meant, and where JAX cannot start.
    """
    given = {
        "coordinator": coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS", ""),
        "num_processes": num_processes or os.environ.get("JAX_NUM_PROCESSES", ""),
        "process_id": process_id or os.environ.get("JAX_PROCESS_ID", ""),
    }
    if any(given.values()):
        options = _explicit(**given)
        if options["process_id"] == 0 and options["num_processes"] > 1:
            _check_port(options["coordinator_address"])
    elif "SLURM_STEP_NODELIST" in os.environ:
        # By JAX's own rule each task sees one of its node's devices. A single task is to see all of them.
        options = {"num_processes": int(os.environ["SLURM_NTASKS"])}
    elif _on_tpu():
        options = {}
    else:
        return
    if options.get("num_processes") == 1:
        return
    # SIGTERM is run.Termination's; JAX's own service would take it away.
    jax.config.update("jax_enable_preemption_service", False)
    # JAX aborts with a stack trace when its own time is over; this is before.
    waiting = threading.Timer(wait_seconds, _give_up, [given["coordinator"], wait_seconds])
    waiting.daemon = True
    waiting.start()
    try:
        jax.distributed.initialize(**options, initialization_timeout=int(wait_seconds) + 60)
    except (RuntimeError, ValueError) as error:
        # JAX's ValueError of a TPU machine that belongs to no cluster: it is alone.
        if options or not isinstance(error, ValueError):
            raise ProcessError(f"this process cannot join the others ({options}): {error}") from error
    finally:
        waiting.cancel()
    # Connects all devices while the processes are together. On CPUs the first collective that needs a connection fails
    # where another process comes to it more than 30 s later, as one that compiles the train step for longer would.
    Agreement(make_mesh(), delay=0)(False)


def _explicit(coordinator: str, num_processes: str, process_id: str) -> dict[str, Any]:
    said = f"--coordinator={coordinator} --num_processes={num_processes} --process_id={process_id}"
    if not coordinator.rpartition(":")[0] or not coordinator.rpartition(":")[2].isdigit():
        raise ProcessError(f"--coordinator must be HOST:PORT of process 0, got {said}")
    if not (num_processes.isdigit() and process_id.isdigit() and int(process_id) < int(num_processes)):
        raise ProcessError(f"--num_processes=N goes with --process_id=0 to N - 1, each process another, got {said}")
    return {
        "coordinator_address": coordinator,
        "num_processes": int(num_processes),
        "process_id": int(process_id),
        "cluster_detection_method": "deactivate",
    }


def _check_port(coordinator: str) -> None:
    """Raises: ProcessError for a port that this process cannot open, of which JAX's server would die."""
    port = int(coordinator.rpartition(":")[2])
    try:
        socket.create_server(("", port)).close()
    except (OSError, OverflowError) as error:
        raise ProcessError(
            f"process 0 cannot open port {port} ({error}); give all processes another --coordinator=HOST:PORT"
        ) from error


def _on_tpu() -> bool:
    allowed = os.environ.get("JAX_PLATFORMS") or "tpu"
    devices = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    return "tpu" in allowed and bool(devices) and importlib.util.find_spec("libtpu") is not None


def _give_up(coordinator: str, seconds: float) -> None:
    print(
        f"error: after {seconds:.0f} s not all processes have met at {coordinator or 'the first host'}. Likely causes: "
        "one was not started, or ended before (its own output says why); --num_processes (SLURM's tasks, Kubernetes' "
        "completions) is more than were started; two have the same --process_id; the host's name or port is not "
        "reached from the others (firewall, no headless service, 127.0.0.1 with several machines, http_proxy set); "
        "another run holds the port",
        file=sys.stderr,
        flush=True,
    )
    os._exit(NOT_MET)  # the main thread is inside of JAX and cannot be interrupted


@contextlib.contextmanager
def leaving_on_error() -> Iterator[None]:
    """Ends this process at once where an error leaves the context and other processes wait for it.

    JAX would have it wait for them, and them for it, until their time is over.
    """
    try:
        yield
    except BaseException as error:
        if not jax.distributed.is_initialized():
            raise
        if isinstance(error, SystemExit):
            print(error.code, file=sys.stderr)
        else:
            traceback.print_exc()
            print(
                "error: this process failed, or lost the others. If one of them ended, its own output says why; the "
                "same command goes on from the newest checkpoint",
                file=sys.stderr,
            )
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """The devices along one axis; if not given all of all processes, process by process, so that each has successive
    rows of a batch."""
    # Not jax.make_mesh: its axes are explicit, and shard_map then refuses arrays that were not placed by hand.
    if devices is None:
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.asarray(devices), (AXIS,))


def make_local_mesh() -> Mesh:
    """The devices of this process alone, for what it computes without the others."""
    return Mesh(jax.local_devices(), (AXIS,))


def map_step(step: Any, mesh: Mesh, *, shard_state: bool = False) -> Callable[[Any, Any], tuple[Any, Any]]:
    """A `step.TrainStep` over the mesh: (state, batch) -> (state, metrics), batch split, metrics replicated.

    Its gradients are each device's work under shard_map; what it does with them is left to XLA, which divides it as the
    state is: replicated, or with `shard_state` as `split_axes` says.
    The state's buffers are donated: use the returned state only. The check of varying axes (check_vma) refuses, when
    traced, a step whose new state would differ between devices.
    """
    replicated, split = PartitionSpec(), PartitionSpec(AXIS)

    def mapped(state: Any, batch: Any) -> tuple[Any, Any]:
        axes = split_axes(state, mesh.size if shard_state else 1)
        specs = jax.tree.map(_spec, axes)
        late = jax.tree_util.tree_map_with_path(
            lambda path, spec: spec if gathered_late(path) else replicated, specs.model_state
        )
        gradients = jax.shard_map(
            lambda state, batch: step.gradients(state, batch, axes, in_loops=mesh.devices.flat[0].platform != "cpu"),
            mesh=mesh,
            in_specs=(specs, split),
            out_specs=(specs.params, {"model_state": late, "metrics": replicated, "finite": replicated}),
            check_vma=True,
        )
        new, metrics = step.apply(state, *gradients(state, batch))
        return lax.with_sharding_constraint(new, _state_shardings(new, mesh, shard_state)), metrics

    return jax.jit(mapped, donate_argnums=0)


def split_axes(tree: Any, devices: int) -> Any:
    """For each leaf the axis along which that many devices have a part each: its longest that they divide; WHOLE where
    there is none, and for leaves of fewer than SPLIT_SIZE numbers, which cost more to gather than to keep."""

    def axis(leaf: Any) -> int:
        divided = [n for n, size in enumerate(leaf.shape) if size % devices == 0]
        if devices == 1 or leaf.size < SPLIT_SIZE or not divided:
            return WHOLE
        return max(divided, key=lambda n: leaf.shape[n])

    return jax.tree.map(axis, tree)


def _spec(axis: int) -> PartitionSpec:
    return PartitionSpec() if axis == WHOLE else PartitionSpec(*[None] * axis, AXIS)


def _state_shardings(shapes: Any, mesh: Mesh, shard_state: bool) -> Any:
    axes = split_axes(shapes, mesh.size if shard_state else 1)
    return jax.tree.map(lambda axis: NamedSharding(mesh, _spec(axis)), axes)


def create_state(create: Callable[[], Any], mesh: Mesh, *, shard_state: bool = False) -> Any:
    """`create()` on the mesh, the same whatever it is: on every device, or with `shard_state` a part on each, of which
    none ever holds the whole."""
    shardings = _state_shardings(jax.eval_shape(create), mesh, shard_state)
    return jax.jit(create, out_shardings=shardings)()


def gather_state(tree: Any, mesh: Mesh) -> Any:
    """A tree of arrays on the mesh, whole on every device; to be called by every process."""
    if all(leaf.is_fully_replicated for leaf in jax.tree.leaves(tree)):
        return tree
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))(tree)


def described_devices(topology: str, cores: int) -> Sequence[Any]:
    """The devices of a TPU slice, "v5e:16x16", that is not there: to compile for, not to run on. Needs libtpu.

    cores: of a chip; two of them are one device, as at run time ("megacore"; of a v4 libtpu would describe two).
    """
    chip = "megacore" if cores == 2 else "default"
    return topologies.get_topology_desc(platform="tpu", topology_name=topology, chip_config_name=chip).devices


def compile_step(step: Any, mesh: Mesh, state: Any, batch: Any, *, shard_state: bool = False) -> jax.stages.Compiled:
    """`map_step(step, mesh)` compiled for a state and a global batch of these shapes (`jax.ShapeDtypeStruct`)."""

    def place(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    placed = jax.tree.map(place, state, _state_shardings(state, mesh, shard_state))
    rows = jax.tree.map(lambda x: place(x, NamedSharding(mesh, PartitionSpec(AXIS))), batch)
    return map_step(step, mesh, shard_state=shard_state).lower(placed, rows).compile()


def map_rows(function: Callable[[Any, Any], Any], mesh: Mesh) -> Callable[[Any, Any], Any]:
    """`function(variables, rows) -> rows` over the mesh: each device computes its share of the rows."""
    replicated, split = PartitionSpec(), PartitionSpec(AXIS)
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=(replicated, split), out_specs=split, check_vma=True))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A copy of `tree`, the same in every process, on every device of the mesh."""
    sharding = NamedSharding(mesh, PartitionSpec())
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    # Onto devices of other processes device_put sends each leaf around, to compare it.
    def place(leaf: Any) -> jax.Array:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        return jax.make_array_from_callback(leaf.shape, sharding, np.asarray(leaf).__getitem__)

    return jax.tree.map(place, tree)


def own_devices(tree: Any, mesh: Mesh) -> Any:
    """A tree that is replicated over the devices of all processes, on this process's mesh; nothing is copied."""
    sharding = NamedSharding(mesh, PartitionSpec())

    def place(leaf: Any) -> jax.Array:
        copies = {shard.device: shard.data for shard in leaf.addressable_shards}
        return jax.make_array_from_single_device_arrays(
            leaf.shape, sharding, [copies[device] for device in mesh.devices.flat]
        )

    return jax.tree.map(place, tree)


def split_batch(batch: Any, mesh: Mesh) -> Any:
    """This process's rows [local_batch, ...] as its share of arrays [batch, ...] that are split over the mesh."""
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)


def is_first() -> bool:
    """Whether this process is the one that writes what a run writes once."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns when every process has come here, with the same name."""
    multihost_utils.sync_global_devices(name)


def gather_rows(rows: Shaped[np.ndarray, " rows ..."]) -> Shaped[np.ndarray, " all_rows ..."]:
    """The rows of every process, process by process; each may have another number of them."""
    counts = multihost_utils.process_allgather(np.int32(len(rows)))
    filled = np.zeros((counts.max(), *rows.shape[1:]), rows.dtype)
    filled[: len(rows)] = rows
    gathered = multihost_utils.process_allgather(filled)
    return np.concatenate([part[:count] for part, count in zip(gathered, counts, strict=True)])


def gather_facts(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each process's `facts`, of what JSON can hold, in the order of the processes."""
    text = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(text)))
    ends = np.cumsum(lengths)
    everything = gather_rows(text)
    return [json.loads(everything[end - n : end].tobytes()) for n, end in zip(lengths, ends, strict=True)]


def check_same(facts: Mapping[str, Any]) -> None:
    """Raises: ProcessError, in every process, with what differs from the first and where, unless all have the same."""
    first, *others = gather_facts(facts)
    missing = "(missing)"
    listed = [
        f"{key}: {first.get(key, missing)} in process 0, {other.get(key, missing)} in process {number}"
        for number, other in enumerate(others, start=1)
        for key in sorted(first | other)
        if first.get(key, missing) != other.get(key, missing)
    ]
    if listed:
        raise ProcessError(
            "the processes do not run the same:\n  " + "\n  ".join(listed) + "\nstart every one with the same command, "
            "code, packages and data"
        )


class Agreement:
    """What any process wishes, all learn at the same step, without waiting for each other.

    The wishes of a step travel beside the training and are read `delay` steps later: by then the devices have done that
    step, and each process reads the same. A single process has its wishes at once. A wish is to be repeated until it
    is granted; with that, what was wished meanwhile is forgotten.
    """

    def __init__(self, mesh: Mesh, *, delay: int):
        self._mesh, self._delay = mesh, delay
        self._on_the_way: collections.deque[jax.Array] = collections.deque()
        split, replicated = PartitionSpec(AXIS), PartitionSpec()
        any_process = jax.shard_map(
            lambda wishes: lax.pmax(wishes[0], AXIS), mesh=mesh, in_specs=split, out_specs=replicated
        )
        self._any_process = jax.jit(any_process)

    def __call__(self, *wishes: bool) -> tuple[bool, ...]:
        """To be called by each process at each step, with as many wishes -> which of them are granted, to all."""
        if jax.process_count() == 1:
            return wishes
        rows = np.tile(np.array(wishes, np.int32), (jax.local_device_count(), 1))
        self._on_the_way.append(self._any_process(split_batch(rows, self._mesh)))
        if len(self._on_the_way) <= self._delay:
            return (False,) * len(wishes)
        granted = tuple(bool(wish) for wish in np.asarray(self._on_the_way.popleft()))
        if any(granted):
            self._on_the_way.clear()
        return granted

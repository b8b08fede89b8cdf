"""The processes of a run: how they start, exchange facts, and end."""

import contextlib
import glob
import importlib.util
import json
import os
import platform
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Shaped

from ssl_jax.dist import heartbeats
from ssl_jax.dist.agreement import Agreement
from ssl_jax.dist.mesh import make_mesh

# Exit codes; launch/common.sh has them, too.
NOT_MET = os.EX_UNAVAILABLE  # 69: a process that waited in vain for the others to start
STUCK = os.EX_SOFTWARE  # 70: a process that cannot go on for lack of another one, or that stands still; start it again
# After which JAX aborts a process if another one is silent, with a stack trace of its own. ssl_jax train has found the
# silent process before (training/watchdog.py), and says which it is.
HEARTBEAT_TIMEOUT = 300


class ProcessError(RuntimeError):
    """Processes that cannot work together; its text is for the user."""


def start_processes(
    coordinator: str = "", num_processes: str = "", process_id: str = "", *, wait_seconds: float = 300.0
) -> None:
    """Joins this process to the others of the run, if there are others. Call it before anything else that uses JAX.

    The meeting point comes from the arguments, else from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID;
    else from SLURM, for the tasks of one `srun`; else from the TPU pod that this machine is a worker of. If none of
    these is there, the run has one process.

    Args:
      coordinator: HOST:PORT of process 0, as the other machines reach it.
      num_processes, process_id: n, and 0 to n - 1; digits, as on a command line.
      wait_seconds: a process that waits longer for others ends the program and prints the likely causes.
    Raises: ProcessError for values that make no sense, and if JAX cannot start.
    """
    given = {
        "coordinator": coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS", ""),
        "num_processes": num_processes or os.environ.get("JAX_NUM_PROCESSES", ""),
        "process_id": process_id or os.environ.get("JAX_PROCESS_ID", ""),
    }
    if any(given.values()):
        options: dict[str, Any] = _explicit(**given)
        if options["process_id"] == 0 and options["num_processes"] > 1:
            _check_port(options["coordinator_address"])
    elif "SLURM_STEP_NODELIST" in os.environ:
        # By JAX's own rule each task sees one of its node's devices. A single task must see all of them.
        options = {"num_processes": int(os.environ["SLURM_NTASKS"])}
    elif _on_tpu():
        options = {}
    else:
        return
    if options.get("num_processes") == 1:
        return
    # training/termination.py handles SIGTERM; JAX's own service would take the signal away from it.
    jax.config.update("jax_enable_preemption_service", False)
    # This timer ends before JAX's own timeout, at which JAX aborts with a stack trace.
    waiting = threading.Timer(wait_seconds, _give_up, [given["coordinator"], wait_seconds])
    waiting.daemon = True
    waiting.start()
    try:
        jax.distributed.initialize(
            **options,
            initialization_timeout=int(wait_seconds) + 60,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
        )
    except (RuntimeError, ValueError) as error:
        # JAX raises ValueError on a TPU machine that belongs to no cluster. Such a machine is alone.
        if options or not isinstance(error, ValueError):
            raise ProcessError(f"this process cannot join the others ({options}): {error}") from error
    finally:
        waiting.cancel()
    # Connects all devices while the processes are together. On CPUs, the first collective that needs a connection fails
    # if another process reaches it more than 30 s later, for example because it compiles the train step for longer.
    Agreement(make_mesh(), delay=0)(False)


def _explicit(coordinator: str, num_processes: str, process_id: str) -> dict[str, Any]:
    said = f"--coordinator={coordinator} --num_processes={num_processes} --process_id={process_id}"
    if not coordinator.rpartition(":")[0] or not coordinator.rpartition(":")[2].isdigit():
        raise ProcessError(f"--coordinator must be HOST:PORT of process 0, got {said}")
    if not (num_processes.isdigit() and process_id.isdigit() and int(process_id) < int(num_processes)):
        raise ProcessError(
            f"--num_processes=N needs a --process_id in 0..N-1, another one for each process, got {said}"
        )
    return {
        "coordinator_address": coordinator,
        "num_processes": int(num_processes),
        "process_id": int(process_id),
        "cluster_detection_method": "deactivate",
    }


def _check_port(coordinator: str) -> None:
    """Raises: ProcessError for a port that this process cannot open. JAX's server would die of it."""
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
        f"error: after {seconds:.0f} s not all processes have met at "
        f"{coordinator or 'the first host'}. Likely causes: one was not started, or ended before (its "
        "own output says why); --num_processes (SLURM's tasks, Kubernetes' completions) is more than "
        "were started; two have the same --process_id; the other processes cannot reach the host's "
        "name or port (firewall, no headless service, 127.0.0.1 with several machines, http_proxy "
        "set); another run holds the port",
        file=sys.stderr,
        flush=True,
    )
    os._exit(NOT_MET)  # the main thread is inside of JAX and cannot be interrupted


@contextlib.contextmanager
def leaving_on_error() -> Iterator[None]:
    """Ends this process at once if an error leaves the context and other processes wait for this one.

    JAX would make it and the others wait for each other until their timeout. The exit code is STUCK if another process
    has ended, and this error is likely to be the consequence; else 1. It says which process has ended, and why if that
    one said so.
    """
    try:
        yield
    except BaseException as error:
        if not jax.distributed.is_initialized():
            raise
        code = 1
        if isinstance(error, SystemExit):
            print(error.code, file=sys.stderr, flush=True)
            heartbeats.say_ended(str(error.code))
        else:
            traceback.print_exc()
            lost = heartbeats.find_ended()
            code = STUCK if lost else 1
            print(
                f"error: {lost or 'this process failed.'} If another process ended, its own output says why; the same "
                "command goes on from the newest checkpoint",
                file=sys.stderr,
            )
            heartbeats.say_ended(f"{type(error).__name__}: {error}" if code == 1 else heartbeats.LOST_OTHERS)
            if is_first():
                time.sleep(2.0)  # JAX aborts the others once process 0 is gone; they are to say what they see, too
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def is_first() -> bool:
    """Whether this process writes what a run writes only once."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns when every process has called it with the same name."""
    multihost_utils.sync_global_devices(name)


def gather_rows(rows: Shaped[np.ndarray, " rows ..."]) -> Shaped[np.ndarray, " all_rows ..."]:
    """The rows of every process, in the order of the processes. Processes may have different numbers of rows."""
    counts = multihost_utils.process_allgather(np.int32(len(rows)))
    filled = np.zeros((counts.max(), *rows.shape[1:]), rows.dtype)
    filled[: len(rows)] = rows
    gathered = multihost_utils.process_allgather(filled)
    return np.concatenate([part[:count] for part, count in zip(gathered, counts, strict=True)])


def gather_facts(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The `facts` of every process, in the order of the processes. JSON must be able to hold them."""
    text = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(text)))
    ends = np.cumsum(lengths)
    everything = gather_rows(text)
    return [json.loads(everything[end - n : end].tobytes()) for n, end in zip(lengths, ends, strict=True)]


def hosts() -> list[str]:
    """The name of each process's machine. All processes must call it."""
    return [facts["host"] for facts in gather_facts({"host": platform.node()})]


def check_same(facts: Mapping[str, Any]) -> None:
    """Raises: ProcessError, in every process, if not all have the same facts. It says what differs from process 0, and
    where."""
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
            "the processes do not agree:\n  "
            + "\n  ".join(listed)
            + "\nstart all processes with the same command, code, packages and data"
        )

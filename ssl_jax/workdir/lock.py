""".lock: one start at a time in a workdir. On a disk it is locked; in a store it is a lease, see workdir/lease.py."""

import contextlib
import errno
import logging
import os
import platform
from collections.abc import Callable, Iterator
from typing import Any

from ssl_jax import config as configs
from ssl_jax import dist
from ssl_jax.paths import AnyPath, StorePath
from ssl_jax.workdir import lease

try:
    import fcntl
except ImportError:  # Windows
    fcntl: Any = None

NAME = ".lock"


@contextlib.contextmanager
def alone(workdir: AnyPath) -> Iterator[Callable[..., None]]:
    """Within this context, no other start trains in `workdir`: two starts would undo what the other writes.

    All processes of a run must enter it. If the file system has no locks, or on Windows, nothing is checked.
    Gives `Lease.check`, which raises if another start has taken over the workdir all the same; on a disk none can.
    Raises: ConfigError, in every process, if another start is training there.
    """
    with contextlib.ExitStack() as stack:
        holder, check, remedy = "", _held, ""
        if dist.is_first() and isinstance(workdir, StorePath):
            own = lease.Lease(workdir / NAME)
            holder, check = own.take(), own.check
            if not holder:
                stack.callback(own.release)
            remedy = f". Its lease ends {lease.EXPIRES:.0f} s after it has died"
        elif dist.is_first():
            lock = stack.enter_context((workdir / NAME).open("a+"))  # closing it frees the lock, and so does a kill
            try:
                if fcntl is None:
                    raise OSError(errno.ENOLCK, "Python has no fcntl on Windows")
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                lock.truncate(0)
                print(f"process {os.getpid()} on {platform.node()}", file=lock, flush=True)
            except BlockingIOError:
                lock.seek(0)
                holder = lock.read().strip()
            except OSError as error:
                logging.warning("%s cannot be locked (%s): start no second run in it", workdir, error.strerror)
        if holder := dist.gather_facts({"holder": holder})[0]["holder"]:
            raise configs.ConfigError(
                f"another process is training in {workdir}: {holder}; wait until it has ended, or use another "
                f"--workdir{remedy}"
            )
        yield check


def _held(*, now: bool = False) -> None:
    """A lock on a disk is held as long as the process lives."""

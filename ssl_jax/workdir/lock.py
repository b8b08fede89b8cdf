""".lock: one start at a time in a workdir."""

import contextlib
import fcntl
import logging
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from ssl_jax import config as configs
from ssl_jax import dist


@contextlib.contextmanager
def alone(workdir: Path) -> Iterator[None]:
    """Within this context, no other start trains in `workdir`: two starts would undo what the other writes.

    All processes of a run must enter it. If the file system has no locks, nothing is checked.
    Raises: ConfigError, in every process, if another start is training there.
    """
    with contextlib.ExitStack() as stack:
        holder = ""
        if dist.is_first():
            lock = stack.enter_context((workdir / ".lock").open("a+"))  # closing it frees the lock, and so does a kill
            try:
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
                f"another process is training in {workdir}: {holder}; wait until it has ended, or use another --workdir"
            )
        yield

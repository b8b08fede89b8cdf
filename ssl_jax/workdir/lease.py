"""The lease of a workdir in an object store, which has no locks: a file that its holder renews while it lives.

Who finds a lease watches it. If it changes, its holder lives; if it does not for EXPIRES seconds, it is taken over.
Only this process's monotonic clock counts, so clocks that differ or jump do no harm. Who writes a lease reads it back
after SETTLES seconds, as not every store refuses the second of two that write at once. A holder that finds another's
lease in its place stops.
"""

import contextlib
import datetime
import json
import logging
import os
import platform
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from ssl_jax import config as configs
from ssl_jax import paths
from ssl_jax.paths import StorePath
from ssl_jax.stores import StoreError

RENEWED, EXPIRES = 15.0, 60.0  # seconds: between two renewals; without one, until another may take it
SETTLES, LOOKS = 1.0, 2.0  # seconds: until what was written is read back; between two looks at another's lease


class Lease:
    """Held from the call of `take` until `release`. A thread renews it."""

    def __init__(self, path: StorePath):
        self._path, self._number, self._lost = path, 0, ""
        self._own = {
            "id": uuid.uuid4().hex,
            "process": os.getpid(),
            "host": platform.node(),
            "machine": _machine(),
        }
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_released, name="lease", daemon=True)

    def take(self) -> str:
        """ "" if this process holds the lease now; else who holds it. Waits for as long as that is not known."""
        while True:
            found = self._read()
            if found is None:
                if not paths.create(self._path, self._record()):
                    continue  # another was faster; or this process, whose first answer was lost
            elif found.get("id") != self._own["id"]:
                if not _is_dead(found) and (holder := self._watch(found)):
                    return holder
                paths.upload(self._path, self._record())
            time.sleep(SETTLES)
            found = self._read()
            if found is None:
                continue
            if found.get("id") != self._own["id"]:
                return _named(found)
            self._thread.start()
            return ""

    def check(self, *, now: bool = False) -> None:
        """Raises: ConfigError if another process has taken the lease. now: also looks at it, which takes a request."""
        if now and not self._lost:
            self._look()
        if self._lost:
            raise configs.ConfigError(
                f"the run in {self._path.parent} was taken over by {self._lost}, as this process had not renewed its "
                f"lease for {EXPIRES:.0f} s; it goes on there, and this process ends"
            )

    def release(self) -> None:
        self._released.set()
        if self._thread.is_alive():
            self._thread.join(timeout=SETTLES)
        with contextlib.suppress(StoreError, OSError):  # it expires, too
            found = self._read()
            if found is not None and found.get("id") == self._own["id"]:
                paths.remove(self._path)

    def _watch(self, found: dict[str, Any]) -> str:
        """Who holds the lease, if it changes; "" if it does not, or is gone."""
        logging.warning("%s is held by %s; waiting up to %.0f s for a sign of life", self._path, _named(found), EXPIRES)
        begun = time.monotonic()
        while time.monotonic() - begun < EXPIRES:
            time.sleep(LOOKS)
            now = self._read()
            if now is None:
                return ""
            if now != found:
                return _named(now)
        logging.warning("%s has not changed for %.0f s, so this process takes it", self._path, EXPIRES)
        return ""

    def _renew_until_released(self) -> None:
        while not self._released.wait(RENEWED):
            try:
                self._look()
                if self._lost:
                    return
                self._number += 1
                paths.upload(self._path, self._record())
            except (StoreError, OSError) as error:  # the store is away, for all; whoever writes to it says so
                logging.warning("%s could not be renewed: %s", self._path, error)

    def _look(self) -> None:
        found = self._read()
        if found is not None and found.get("id") != self._own["id"]:
            self._lost = _named(found)

    def _record(self) -> bytes:
        time_for_people = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return json.dumps({**self._own, "renewals": self._number, "time": time_for_people}).encode()

    def _read(self) -> dict[str, Any] | None:
        """None if there is no lease. One that cannot be read is of nobody, and expires if it does not change."""
        try:
            text = paths.read_bytes(self._path).decode(errors="replace")
        except FileNotFoundError:
            return None
        try:
            return dict(json.loads(text))
        except (ValueError, TypeError):
            return {"unreadable": text}


def _named(found: dict[str, Any]) -> str:
    return f"process {found.get('process', '?')} on {found.get('host', '?')}"


def _machine() -> str:
    """The same for processes that see each other by their numbers: of one boot and one container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # no Linux
        return ""


def _is_dead(found: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine, and is gone. False where that is not known."""
    number = found.get("process")
    if not found.get("machine") or found["machine"] != _machine() or not isinstance(number, int):
        return False
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return True
    except OSError:
        return False

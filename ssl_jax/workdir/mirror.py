"""Files that grow, for a workdir in an object store: written on a local disk, and uploaded as they are now and then.

A store can replace a file but not append to it.
"""

import tempfile
import threading
import time
from pathlib import Path

from ssl_jax import paths
from ssl_jax.paths import StorePath

LEAST_WAIT = 20.0  # seconds between two uploads in the background
SHARE = 0.05  # at most, of the time that uploads take


class Mirror:
    """A local directory, `folder`, whose files are kept in `directory` of a store, too.

    They are uploaded in the background, at the latest LEAST_WAIT seconds after they changed, or later where uploads
    take long; and by `sync` and `close`.
    """

    def __init__(self, directory: StorePath):
        self._directory, self._temporary = directory, tempfile.TemporaryDirectory(prefix="ssl_jax-")
        self.folder = Path(self._temporary.name)
        self._uploaded: dict[str, tuple[int, int]] = {}
        self._uploading, self._closed = threading.Lock(), threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._keep, name="mirror", daemon=True)
        self._thread.start()

    def sync(self) -> None:
        """Uploads what has changed; all of it is in the store afterwards. Raises: StoreError, OSError."""
        with self._uploading:
            for name in paths.files_below(self.folder):
                stamp = (self.folder / name).stat()
                changed = (stamp.st_size, stamp.st_mtime_ns)
                if self._uploaded.get(name) != changed:
                    paths.upload(self._directory / name, (self.folder / name).read_bytes())
                    self._uploaded[name] = changed

    def check(self) -> None:
        """Raises: StoreError, OSError if an upload in the background failed."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Uploads the rest. Raises: as `sync`."""
        self._closed.set()
        self.sync()
        self._temporary.cleanup()

    def _keep(self) -> None:
        wait = LEAST_WAIT
        while not self._closed.wait(wait):
            begun = time.monotonic()
            try:
                self.sync()
            except Exception as error:
                self._failure = error
                return
            wait = max(LEAST_WAIT, (time.monotonic() - begun) / SHARE)

"""What a study has measured so far: one file, written whole after every cell, so that a kill loses at most one cell."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssl_jax.workdir import files


class Cells:
    """The cells in the file `path`: key -> a value that JSON can hold."""

    def __init__(self, path: Path):
        self._path = path
        self._found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def measure(self, key: str, compute: Callable[[], Any]) -> Any:
        """Returns what the file has under `key`. If it has nothing, computes and keeps it."""
        if key not in self._found:
            found = compute()
            # Through JSON, as a resumed study will read it, so that it sees the same values as one that never stopped.
            self._found[key] = json.loads(json.dumps(found))
            files.write(self._path, json.dumps(self._found, indent=1) + "\n")
        return self._found[key]

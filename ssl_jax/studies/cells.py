"""What a study has measured so far: one file, written whole after every cell, so that a kill loses at most one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssl_jax import run


class Cells:
    """The cells of `path`, key -> what JSON can hold."""

    def __init__(self, path: Path):
        self._path = path
        self._found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def measure(self, key: str, compute: Callable[[], Any]) -> Any:
        """What the file has under `key`, or else computes and keeps it."""
        if key not in self._found:
            found = compute()
            # As it will be read again, so that a study that was stopped sees what one that was not does.
            self._found[key] = json.loads(json.dumps(found))
            run.write(self._path, json.dumps(self._found, indent=1) + "\n")
        return self._found[key]

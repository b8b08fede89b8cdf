"""Mistakes in a config, as messages for its user."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any


class ConfigError(ValueError):
    """A config or a command line that cannot be run; its text is for the user."""


def require(condition: Any, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def check_names(section: Iterable[str], known: Sequence[str], where: str) -> None:
    """Raises: ConfigError for the first key that is not known, with the nearest known one."""
    for key in section:
        require(key in known, f"{where} has no key {key!r}; {nearest(key, known)}")


def nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(sorted(known))}"

"""Checks that the models share."""

from collections.abc import Iterable
from typing import Any

DTYPES = ("float32", "bfloat16")


def check_choice(option: str, value: Any, choices: Iterable[Any]) -> None:
    """Raises: ValueError if `value` is none of `choices`."""
    if value not in choices:
        raise ValueError(f"{option}={value!r} is unknown; it is one of {', '.join(map(str, choices))}")

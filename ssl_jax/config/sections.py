"""Builds the object that a section of a config describes."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ssl_jax.config.errors import ConfigError, check_names, nearest, require
from ssl_jax.config.files import plain


def build(
    table: Mapping[str, Callable[..., Any]], section: Mapping[str, Any], where: str, *args: Any, **facts: Any
) -> Any:
    """`table[section['name']](*args, **facts, **the other keys of section)`.

    Raises: ConfigError for an unknown name or key, with the nearest valid one, and for values that the object refuses.
    """
    require(
        section["name"] in table,
        f"{where}.name={section['name']!r} is unknown; {nearest(section['name'], list(table))}",
    )
    options = {key: plain(value) for key, value in section.items() if key != "name"}
    return call(table[section["name"]], options, where, *args, **facts)


def call(function: Callable[..., Any], options: Mapping[str, Any], where: str, *args: Any, **facts: Any) -> Any:
    """`function(*args, **facts, **options)`, after a check of the option names. Raises: ConfigError."""
    parameters = inspect.signature(function).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        positional = list(parameters)[: len(args)]
        check_names(options, [name for name in parameters if name not in facts and name not in positional], where)
    try:
        return function(*args, **facts, **options)
    except ConfigError:  # it says where already
        raise
    except (ValueError, TypeError, FileNotFoundError) as error:
        raise ConfigError(f"{where}: {error}") from error

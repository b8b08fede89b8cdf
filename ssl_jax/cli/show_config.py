"""Shows every key of a config as text: its value, range and meaning, and where the value comes from."""

import textwrap
from collections.abc import Set

from ml_collections import ConfigDict

from ssl_jax.config import flatten
from ssl_jax.config.overrides import Sections
from ssl_jax.keys import REQUIRED, type_name

WIDTH = 100


def show(config: ConfigDict, named: str, overridden: Set[str], sections: Sections) -> str:
    """Every key of a config as text.

    Args:
      named: the value of --config. overridden: keys that the command line sets, such as "optimizer.lr". sections:
        config -> the keys that it may have.
    """
    values = flatten(config)
    lines: list[str] = []
    for section, keys in sections(config).items():
        if section in ("mask", "mix") and not config.get(section):
            continue
        prefix = f"{section}." if section else ""
        if "name" not in keys and f"{prefix}name" in values:
            lines += _entry(f"{prefix}name", repr(values[f"{prefix}name"]), named, "", "")
        for name, key in keys.items():
            path = f"{prefix}{name}"
            value = values.get(path, key.default)
            origin = "--config." + path if path in overridden else named if path in values else "default"
            if path in values and path not in overridden and value == key.default:
                origin = "default"
            limits = ", ".join([type_name(key.type), *map(str, key.limits)])
            lines += _entry(path, "(required)" if value is REQUIRED else repr(value), origin, limits, key.meaning)
    return "\n".join(lines)


def _entry(path: str, value: str, origin: str, limits: str, meaning: str) -> list[str]:
    text = " ".join(part for part in (meaning, limits and f"({limits})") if part)
    return [
        f"config.{path} = {value}   [{origin}]",
        *textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    "),
    ]

"""Finds configs by name or file, and writes and reads the text that a run keeps."""

import difflib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from absl import flags
from ml_collections import ConfigDict, config_flags

from ssl_jax import keys
from ssl_jax.config import kinds
from ssl_jax.config.errors import ConfigError, nearest, require

SHIPPED = Path(__file__).parents[1] / "configs"
# Keys that say how a run is executed and do not change its result. A run may go on with other values.
EXECUTION = ("checkpoint_minutes", "shard_state")
# Sections that configs had not at first. Empty they say what a config without them says.
LATER = ("mix",)


def shipped() -> dict[str, Path]:
    """{name: file} of the configs that come with the package, those of the methods and of the studies."""
    return {path.stem: path for path in sorted(SHIPPED.rglob("[!_]*.py"))}


def get_config(named: str) -> ConfigDict:
    """A config whose values can be changed.

    Args:
      named: "NAME[:SCALE[:KIND]]" of a config that comes with the package, as "simclr:tiny"; or
        "FILE.py[:SCALE[:KIND]]" of your own, a Python file with `get_config(scale)`. KIND is that of the images, for
        their views: see kinds.py. "NAME::KIND" has the scale that the config has by default.
    Raises: ConfigError if there is no such name, file, scale or kind.
    """
    name, colon, rest = named.partition(":")
    scale, kind_follows, kind = rest.partition(":")
    colon = "" if kind_follows and not scale else colon
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=[])
    try:
        values(["", f"--config={_config_file(name)}{colon}{scale}"])
    except flags.Error as error:
        raise ConfigError(cause_of(error)) from error
    config = values.config
    if kind_follows:
        kinds.overlay(config, kind)
    return config


def _config_file(name: str) -> Path:
    path, ours = Path(name), shipped()
    if path.suffix == ".py":
        if path.is_file():
            return path
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1, cutoff=0.5)
        remedy = f"; did you mean {path.parent / near[0]}?" if near else ""
        if path.stem in ours:
            remedy = f"; the package's own config is named without .py: {path.stem}"
        raise ConfigError(f"no config file {name!r} (looked from {Path.cwd()}){remedy}")
    require(name in ours, f"no config {name!r} (the name of your own file ends in .py); {nearest(name, list(ours))}")
    return ours[name]


def cause_of(error: BaseException) -> str:
    """The message of a library's error; if it quotes a traceback, the last line of that, without the error's type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any(line.startswith("Traceback") for line in lines):
        return lines[-1].split(": ", 1)[-1]
    return " ".join(lines)


def plain(value: Any) -> Any:
    """A value of a config as dicts, tuples and scalars."""
    if isinstance(value, (ConfigDict, Mapping)):
        return {key: plain(v) for key, v in cast(Mapping[str, Any], value).items()}
    if keys.is_sequence(value):
        return tuple(plain(v) for v in value)
    return value


def dumps(config: ConfigDict | Mapping[str, Any]) -> str:
    """The resolved config as JSON, sorted."""
    return json.dumps(plain(config), indent=2, sort_keys=True)


def digest(config: ConfigDict | Mapping[str, Any]) -> str:
    """12 hexadecimal digits that tell one resolved config from another. The keys of EXECUTION do not count."""
    told = {key: value for key, value in config.items() if key not in EXECUTION and (value or key not in LATER)}
    return hashlib.sha256(dumps(told).encode()).hexdigest()[:12]


def loads(text: str) -> ConfigDict:
    """The config of a run's config.json. Raises: ValueError for what is no JSON object."""
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError(f"a JSON object is expected, not {type(values).__name__}")
    return ConfigDict(plain(values))


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """One line for each key whose value differs, except the keys of EXECUTION: "optimizer.lr: 0.3 -> 0.5"."""
    old_values, new_values = flatten(old), flatten(new)
    missing = "(missing)"
    return [
        f"{key}: {old_values.get(key, missing)} -> {new_values.get(key, missing)}"
        for key in sorted(old_values | new_values)
        if key.rpartition(".")[2] not in EXECUTION and old_values.get(key, missing) != new_values.get(key, missing)
    ]


def flatten(config: ConfigDict | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optimizer.lr": 0.3, ...}"""
    flat: dict[str, Any] = {}
    for key, value in plain(config).items():
        if isinstance(value, dict):
            flat |= flatten(cast(dict[str, Any], value), f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat

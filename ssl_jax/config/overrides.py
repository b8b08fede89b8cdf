"""Changes values of a config from outside: "optimizer.lr=0.3"."""

import keyword
import operator
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_dict import placeholder

from ssl_jax.config.errors import ConfigError, check_names, require
from ssl_jax.config.files import cause_of
from ssl_jax.config.schema import Config
from ssl_jax.keys import REQUIRED, Key, keys_of

Sections = Callable[[ConfigDict], Mapping[str, Mapping[str, Key]]]  # config -> {section: {name: key}}

# Types of a config's values, in words.
WANTED = {bool: "True or False", int: "an integer", float: "a number", tuple: "a tuple, such as (1, 2)"}


def override(config: ConfigDict, assignments: Sequence[str], sections: Sections) -> None:
    """Sets "KEY=VALUE" in the config for each of the assignments.

    Args:
      sections: gives the keys that the config's sections may have. They may be set where the config leaves them out.
    Raises: ConfigError for an unknown key, with the nearest known one, and for a value of another type.
    """
    for assignment in assignments:
        _add(config, assignment.partition("=")[0], sections)
    arguments = [_flag(assignment) for assignment in assignments]
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=["", *arguments])
    try:
        values(["", *arguments])
    except (flags.Error, TypeError, ValueError) as error:
        raise ConfigError(_refusal(config, assignments, cause_of(error))) from error


def _flag(assignment: str) -> str:
    """The flag of config_flags. It parses keys as Python does, so a view named "global" is not an attribute there."""
    path, equals, text = assignment.partition("=")
    names = (f'["{name}"]' if keyword.iskeyword(name) else f".{name}" for name in path.split("."))
    return f"--config{''.join(names)}{equals}{text}"


def _refusal(config: ConfigDict, assignments: Sequence[str], cause: str) -> str:
    """What is wrong with the assignment that the message of ml_collections names; that message for other errors."""
    for assignment in assignments:
        path, _, text = assignment.partition("=")
        if f"{_flag(assignment)}:" not in cause:
            continue
        old = operator.attrgetter(path)(config)
        if isinstance(old, ConfigDict):
            return f"config.{path} is a section; set one of its keys, --config.{path}.KEY=VALUE ({', '.join(old)})"
        if type(old) in WANTED:
            return f"config.{path} must be {WANTED[type(old)]}, got {text!r}"
    return cause


def _add(config: ConfigDict, path: str, sections: Sections) -> None:
    """Adds the key to the config if the config may have it. Raises: ConfigError for other keys."""
    section, names = config, path.split(".")
    for depth, key in enumerate(names):
        where = ".".join(names[:depth])
        require(isinstance(section, ConfigDict), f"config.{where} is a value, {section!r}, and has no keys")
        known: Mapping[str, Key] = sections(config).get(where, {}) if key not in section else {}
        check_names([key], list(dict.fromkeys([*section, *known])), f"config.{where}".rstrip("."))
        if key in known:
            with section.unlocked():
                section[key] = _default(known[key])
        elif section.get_type(key) is type(None) and path in keys_of(Config):
            # config_flags needs a type to set it: config.begin of the scale `continue` is None
            section[key] = _default(keys_of(Config)[path])
        section = section[key]


def _default(key: Key) -> Any:
    """The value of a key before it is set: its default, or a placeholder of its type if it has none or that is None."""
    if key.default is not None and key.default is not REQUIRED:
        return key.default
    if typing.get_origin(key.type) is tuple:
        return ()
    kinds = [kind for kind in typing.get_args(key.type) if kind is not type(None)]
    return placeholder(kinds[0] if kinds else key.type)

"""The command line: `--config NAME[:SCALE[:KIND]]`, `--config.KEY=VALUE`, and a program's own flags."""

# pyright: reportUnknownMemberType=false

import contextlib
import errno
import os
import sys
import uuid
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from absl import flags

from ssl_jax import config as configs
from ssl_jax import dist, paths
from ssl_jax.cli.show_config import show
from ssl_jax.config import ConfigError, get_config, require
from ssl_jax.config.files import cause_of
from ssl_jax.config.kinds import KINDS
from ssl_jax.config.overrides import Sections, override
from ssl_jax.paths import AnyPath, StorePath
from ssl_jax.stores import SCHEMES, StoreError

PLATFORM = {
    "platform": (
        f"what to compute on: {', '.join(dist.PLATFORMS)}; default: JAX_PLATFORMS, else a GPU or TPU if there is one"
    )
}
NO_DIRECTORY = "a directory is needed there, so use another path"
NO_ROOM, NO_RIGHT = "make room there", "make it readable and writable, or use another path"
DISK_REMEDIES = {
    errno.ENOSPC: NO_ROOM,
    errno.EDQUOT: NO_ROOM,
    errno.EFBIG: NO_ROOM,
    errno.EROFS: NO_RIGHT,
    errno.EACCES: NO_RIGHT,
    errno.EPERM: NO_RIGHT,
    errno.ENOTDIR: NO_DIRECTORY,
    errno.EEXIST: NO_DIRECTORY,
    errno.EISDIR: "a file is needed there, so use another path",
    errno.EIO: "the disk fails; copy what is there, and use another",
}


def read_flags(
    argv: Sequence[str],
    *,
    program: str,
    sections: Sections | None = None,
    switches: Mapping[str, str] = {},
    strings: Mapping[str, str] = {},
) -> Any:
    """Parses the command line into an object with an attribute for each flag.

    Args:
      argv: the arguments after the program's name.
      program: its name and purpose, for --help.
      sections: only for a program with --config NAME[:SCALE[:KIND]] and --config.KEY=VALUE: config -> the keys that its
        sections may have. Such a program also has --show-config, which prints every key and ends the program.
      switches: name -> help, for flags without a value.
      strings: name -> help, for the other flags. All are strings, "" if not given.
    Raises: ConfigError for arguments that cannot be parsed.
    """
    values = flags.FlagValues()
    flags.DEFINE_bool("help", False, "show this help", flag_values=values, short_name="h")
    if sections is not None:
        switches = {**switches, "show_config": "print every key with its value, range, meaning and origin, and exit"}
    for name, text in switches.items():
        flags.DEFINE_bool(name, False, text, flag_values=values)
    for name, text in strings.items():
        flags.DEFINE_string(name, "", text, flag_values=values)
    named, assignments, rest = _take_config(argv) if sections is not None else ("", [], [*argv])
    if sections is not None:
        kinds = ", ".join(KINDS)
        text = f"NAME[:SCALE[:KIND]], or your own FILE.py[:SCALE]; KIND of images: {kinds}. --config.KEY=VALUE sets one"
        flags.DEFINE_string("config", None, text, flag_values=values)
    try:
        rest = values([program, *(arg.replace("--show-config", "--show_config") for arg in rest)])
    except (flags.Error, ValueError) as error:
        raise ConfigError(cause_of(error)) from error
    if values["help"].value:
        print(f"{program}\n{values.module_help(__name__)}")
        if sections is not None:
            print("to see every key of a config: --config NAME[:SCALE[:KIND]] --show-config")
        sys.exit(0)
    if rest[1:]:
        raise ConfigError(f"unexpected argument {rest[1]!r}; every argument is a flag, --NAME=VALUE")
    found = SimpleNamespace(**{name: values[name].value for name in values})
    if sections is None:
        return found
    require(named, "--config is missing; for example --config simclr:tiny")
    found.config = get_config(named)
    override(found.config, assignments, sections)
    if found.show_config:
        print(show(found.config, named, {assignment.partition("=")[0] for assignment in assignments}, sections))
        sys.exit(0)
    return found


def _take_config(argv: Sequence[str]) -> tuple[str, list[str], list[str]]:
    """(what --config names, "KEY=VALUE" of each --config.KEY, the other arguments)"""
    named, following = "", [*argv]
    assignments: list[str] = []
    rest: list[str] = []
    while following:
        flag = following.pop(0)
        name, equals, value = flag.lstrip("-").partition("=")
        if not flag.startswith("-") or name.partition(".")[0] != "config":
            rest.append(flag)
            continue
        if not equals and following and not following[0].startswith("-"):
            value = following.pop(0)
        if name == "config":
            named = value
        else:
            assigned = value if equals else value or "True"  # a flag without a value is a switch
            assignments.append(f"{name.removeprefix('config.')}={assigned}")
    return named, assignments, rest


def start_devices(platform: str) -> None:
    """For --platform, before a program of one process uses JAX's devices. Raises: PlatformError, as
    `dist.use_platform` and `dist.check_platform` do."""
    dist.use_platform(platform)
    dist.check_platform()


@contextlib.contextmanager
def user_errors(*kinds: type[Exception]) -> Generator[None]:
    """Ends the program with a message instead of a traceback, for errors that are not the program's fault.

    These are ConfigError, PlatformError, StoreError and the given kinds, whose message is for the user, and errors of
    the disk.
    """
    try:
        yield
    except (ConfigError, dist.PlatformError, StoreError, *kinds) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in DISK_REMEDIES:
            raise
        sys.exit(
            f"error: {error.filename or 'a file'}: {error.strerror}; {DISK_REMEDIES[error.errno]}. Files written "
            "before are whole, and the same command goes on from them"
        )


def path(name: str, text: str) -> AnyPath:
    """The path that the flag names, on a disk or in a store. Raises: ConfigError as `paths.path`."""
    return configs.call(paths.path, {}, f"--{name}", text)


def on_disk(name: str, text: str) -> Path:
    """The local path that the flag names. Raises: ConfigError for an address of a store."""
    if paths.is_address(text):
        raise ConfigError(f"--{name}={text}: this is written to a disk only; name a local path, and copy it from there")
    return Path(text)


def check_store(name: str, path: StorePath) -> None:
    """Checks, before any work, that files can be written there: it writes one and removes it. Raises: ConfigError."""
    scheme, _, rest = str(path).partition("://")
    bucket = rest.partition("/")[0]
    probe = path / f".probe-{uuid.uuid4().hex}"
    try:
        paths.upload(probe, b"")
        paths.remove(probe)
    except FileNotFoundError as error:
        raise ConfigError(
            f"--{name}={path}: there is no bucket {bucket}; make it first, {SCHEMES[scheme].make}{bucket}"
        ) from error
    except StoreError:
        raise
    except Exception as error:  # of any type: of the rights, or of what asks for them
        line = (str(error).splitlines() or [""])[0][:300]
        raise ConfigError(
            f"--{name}={path}: it cannot be written ({type(error).__name__}: {line}); give this machine the right to "
            f"read, write and delete in the bucket {bucket}, or use another --{name}"
        ) from error


def check_file(name: str, path: AnyPath) -> None:
    """Checks, before any work, that the file which the flag names can be written. Raises: ConfigError."""
    if isinstance(path, StorePath):
        check_store(name, path.parent)
        return
    if not path.parent.is_dir():
        raise ConfigError(f"--{name}={path}: there is no directory {path.parent}; make it first")
    if path.is_dir():
        raise ConfigError(f"--{name}={path}: it is a directory; give the name of a file")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"--{name}={path}: it cannot be written; make it writable, or give another file")


def written_files(name: str, text: str, endings: Sequence[str]) -> list[AnyPath]:
    """The files that the flag names, separated by commas, after the check of `check_file`.

    Raises: ConfigError for a file of another ending.
    """
    files = [path(name, part) for part in text.split(",")]
    for file in files:
        if file.suffix not in endings:
            raise ConfigError(
                f"--{name}={text}: the name of a file must end in {' or '.join(endings)}, got {file.name!r}"
            )
        check_file(name, file)
    return files


def check_directory(name: str, path: AnyPath) -> None:
    """Checks, before any work, that the directory which the flag names can be made or used. Raises: ConfigError."""
    if isinstance(path, StorePath):
        check_store(name, path)
        return
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not there.is_dir():
        raise ConfigError(f"--{name}={path}: {there} is a file; use another --{name}")
    if not os.access(there, os.W_OK):
        raise ConfigError(f"--{name}={path}: {there} cannot be written; make it writable, or use another --{name}")

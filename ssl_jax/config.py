"""Configs: their common keys, reading them with overrides from the command line, and checking them.

The only reader of command-line flags. Configs are Python files of ml_collections, the package's own found by name:
`--config simclr:tiny --config.optimizer.lr=0.3`. Every mistake that can be known from the config alone stops the
program here, before any work, with a sentence that names the key, its value and the remedy.
"""

import contextlib
import difflib
import errno
import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

NO_FOLDER = "a folder is to be there, so use another --workdir"
NO_ROOM, NO_RIGHT = "make room there", "make it readable and writable, or use another --workdir"
DISK_REMEDIES = {
    errno.ENOSPC: NO_ROOM,
    errno.EDQUOT: NO_ROOM,
    errno.EFBIG: NO_ROOM,
    errno.EROFS: NO_RIGHT,
    errno.EACCES: NO_RIGHT,
    errno.EPERM: NO_RIGHT,
    errno.ENOTDIR: NO_FOLDER,
    errno.EEXIST: NO_FOLDER,
    errno.EIO: "the disk fails; copy what is there, and use another",
}


# Keys that say how a run is done and change nothing of what comes out: a run may go on with others.
SHIPPED = Path(__file__).parent / "configs"

EXECUTION = ("checkpoint_minutes", "shard_state")


class ConfigError(ValueError):
    """A config or a command line that cannot be run; its text is for the user."""


def base_config() -> ConfigDict:
    """The keys that every config has, for `get_config` to fill in; a config adds model, method, augment, optimizer."""
    return ConfigDict(
        dict(
            seed=0,
            batch_size=256,  # images per step over all devices and processes
            epochs=0,
            steps=0,  # above 0 it counts instead of epochs
            compute_dtype="float32",  # of the networks: float32 or bfloat16; all else is float32
            shard_state=False,  # each device keeps a part of weights, optimizer, teacher, queues: gathered where used
            data=dict(
                name="fashion_mnist",  # a TFDS name, or folder
                path="",  # of the folder
                split="train",
                test_split="test",  # evaluated on
                image_size=(28, 28),  # height, width
                channels=1,
                mean=(0.2860,),  # of each channel, images in 0..1
                std=(0.3530,),
                memory_bytes=2**31,  # a data set that decoded takes no more than this is kept in memory
                threads=8,  # that decode, where it is not
                prefetch=2,  # batches made ahead
            ),
            model=dict(name="resnet8"),
            method=dict(name=""),
            augment=dict(),  # one entry for each kind of view that the method declares
            mask=dict(),  # for methods that mask patches: see data/masks.py
            optimizer=dict(name="adamw", lr=0.0, weight_decay=0.0, warmup_steps=0, final_lr=0.0),
            log_every=50,
            checkpoint_every=500,
            checkpoint_minutes=10.0,  # the most that a kill costs, beside checkpoint_every; 0: by steps only
            evaluate_every=500,  # 0: never
            online_knn=dict(bank=8000, queries=2000, k=20, temperature=0.07),  # images of the training split
            stop_after_skipped=10,  # steps in a row whose loss or gradient is not finite
        )
    )


Defaults = Callable[[ConfigDict], Mapping[str, Mapping[str, Any]]]


def read_flags(
    argv: Sequence[str],
    *,
    program: str,
    defaults: Defaults | None = None,
    switches: Mapping[str, str] = {},
    **strings: str,
) -> Any:
    """The command line as an object with an attribute for each flag.

    Args:
      argv: the arguments after the program's name.
      program: its name and purpose, for --help.
      defaults: for a program that takes --config NAME[:SCALE] and --config.KEY=VALUE: config -> what its sections take,
        {"method": {"temperature": 0.1, ...}, ...}. Of these, keys may be given that the file does not have.
      switches: name -> help of flags that are given or not.
      strings: name -> help of its other flags, all strings, "" where not given.
    Raises: ConfigError for what cannot be parsed.
    """
    values = flags.FlagValues()
    flags.DEFINE_bool("help", False, "show this", flag_values=values, short_name="h")
    for name, text in switches.items():
        flags.DEFINE_bool(name, False, text, flag_values=values)
    for name, text in strings.items():
        flags.DEFINE_string(name, "", text, flag_values=values)
    args, config = [*argv], None
    if defaults is not None:
        config, args = _take_config(args)
        if config is None:
            flags.DEFINE_string(
                "config",
                None,
                "NAME[:SCALE], or your own FILE.py[:SCALE]; values: --config.KEY=VALUE",
                flag_values=values,
            )
        else:
            _add_overridden(config, args, defaults)
            config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=[program, *args])
    try:
        rest = values([program.split()[0], *args])
    except (flags.Error, TypeError, ValueError) as error:
        raise ConfigError(_cause(error)) from error
    if values["help"].value:
        print(f"{program}\n{values.module_help('ssl_jax.config')}")
        sys.exit(0)
    if rest[1:]:
        raise ConfigError(f"unexpected argument {rest[1]!r}; every argument is a flag, --NAME=VALUE")
    if defaults is not None and config is None:
        raise ConfigError("--config is missing; for example --config simclr:tiny")
    return values


def _take_config(argv: Sequence[str]) -> tuple[ConfigDict | None, list[str]]:
    """(the config that --config names, the other arguments)"""
    config, rest, following = None, [], iter(argv)
    for flag in following:
        name, equals, value = flag.partition("=")
        if name in ("--config", "-config"):
            config = get_config(value if equals else next(following, ""))
        else:
            rest.append(flag)
    return config, rest


def _add_overridden(config: ConfigDict, argv: Sequence[str], defaults: Defaults) -> None:
    """Gives the config those keys of `defaults` that --config.KEY=VALUE names. Raises: ConfigError for unknown keys."""
    for flag in argv:
        if not flag.startswith(("--config.", "-config.")):
            continue
        section, path = config, flag.partition("=")[0].lstrip("-").split(".")[1:]
        for depth, key in enumerate(path):
            where = ".".join(path[:depth])
            _require(isinstance(section, ConfigDict), f"config.{where} is no section; it has the value {section!r}")
            known = defaults(config).get(where, {}) if key not in section else {}
            check_names([key], list(dict.fromkeys([*section, *known])), f"config.{where}".rstrip("."))
            if key in known:
                with section.unlocked():
                    section[key] = known[key]
            section = section[key]


def shipped() -> dict[str, Path]:
    """Name -> file of the configs that come with the package: of the methods and of the studies."""
    return {path.stem: path for path in sorted(SHIPPED.rglob("[!_]*.py"))}


def get_config(named: str) -> ConfigDict:
    """A config, for its values to be changed.

    Args:
      named: "NAME[:SCALE]" of one that comes with the package, as "simclr:tiny"; or "FILE.py[:SCALE]" of your own, a
        Python file with `get_config(scale)`.
    Raises: ConfigError where there is no such name, file or scale.
    """
    name, colon, scale = named.partition(":")
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=[])
    try:
        values(["", f"--config={_config_file(name)}{colon}{scale}"])
    except flags.Error as error:
        raise ConfigError(_cause(error)) from error
    return values.config


def _config_file(name: str) -> Path:
    path, ours = Path(name), shipped()
    if path.suffix == ".py":
        if path.is_file():
            return path
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1, cutoff=0.5)
        remedy = f"; did you mean {path.parent / near[0]}?" if near else ""
        if path.stem in ours:
            remedy = f"; for the package's own give its name, {path.stem}"
        raise ConfigError(f"no config file {name!r} (looked from {Path.cwd()}){remedy}")
    _require(name in ours, f"no config {name!r} (a file of your own is named FILE.py); {nearest(name, list(ours))}")
    return ours[name]


def _cause(error: BaseException) -> str:
    """What a library said; where its message quotes a traceback, that one's last line without the error's type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any(line.startswith("Traceback") for line in lines):
        return lines[-1].split(": ", 1)[-1]
    return " ".join(lines)


def check(config: ConfigDict) -> None:
    """Raises ConfigError for the first value that no run can have."""
    for key, template in base_config().items():
        _require(key in config, f"config.{key} is missing; start from ssl_jax.config.base_config()")
        if key in ("data", "online_knn"):
            check_names(config[key], list(template), f"config.{key}")
    check_names(config, list(base_config()), "config")
    for key in ("batch_size", "log_every", "checkpoint_every", "stop_after_skipped"):
        _require(config[key] >= 1, f"config.{key} must be at least 1, got {config[key]}")
    for key in ("steps", "epochs", "evaluate_every", "seed", "checkpoint_minutes"):
        _require(config[key] >= 0, f"config.{key} must be at least 0, got {config[key]}")
    _require(
        config.evaluate_every % config.log_every == 0,
        f"config.evaluate_every={config.evaluate_every} is no multiple of config.log_every={config.log_every}",
    )
    _require(config.steps or config.epochs, "config.steps and config.epochs are both 0; set one of them")
    _require(
        config.compute_dtype in ("float32", "bfloat16"),
        f"config.compute_dtype must be float32 or bfloat16, got {config.compute_dtype!r}",
    )
    data = config.data
    _require(
        len(data.image_size) == 2 and min(data.image_size) >= 1,
        f"config.data.image_size must be (height, width) in pixels, got {tuple(data.image_size)}",
    )
    for key in ("mean", "std"):
        _require(
            len(data[key]) == data.channels,
            f"config.data.{key} has {len(data[key])} values for config.data.channels={data.channels}; give each one",
        )
    _require(min(data.std) > 0, f"config.data.std must be above 0, got {tuple(data.std)}")
    optimizer = config.optimizer
    _require(optimizer.lr > 0, f"config.optimizer.lr must be above 0, got {optimizer.lr}")
    for key in ("weight_decay", "warmup_steps"):
        _require(optimizer[key] >= 0, f"config.optimizer.{key} must be at least 0, got {optimizer[key]}")


def check_devices(batch_size: int, devices: int) -> None:
    """Raises ConfigError where the batch cannot be split evenly."""
    if batch_size % devices:
        near = sorted({max(batch_size // devices, 1) * devices, -(-batch_size // devices) * devices})
        remedy = " or ".join(str(size) for size in near)
        raise ConfigError(f"config.batch_size={batch_size} does not divide over {devices} devices; use {remedy}")


def _require(condition: Any, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def check_names(section: Iterable[str], known: Sequence[str], where: str) -> None:
    """Raises: ConfigError for the first key that is not known, with the nearest one that is."""
    for key in section:
        _require(key in known, f"{where} has no key {key!r}; {nearest(key, known)}")


def nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(known))}"


def build(table: Mapping[str, Callable[..., Any]], section: ConfigDict, where: str, *args: Any, **facts: Any) -> Any:
    """`table[section.name](*args, **facts, **the other keys of section)`.

    Raises: ConfigError for an unknown name or key, with the nearest valid one, and for values that it refuses.
    """
    _require(section.name in table, f"{where}.name={section.name!r} is unknown; {nearest(section.name, list(table))}")
    options = {key: plain(value) for key, value in section.items() if key != "name"}
    return call(table[section.name], options, where, *args, **facts)


def call(function: Callable[..., Any], options: Mapping[str, Any], where: str, *args: Any, **facts: Any) -> Any:
    """`function(*args, **facts, **options)`, its option names checked first. Raises: ConfigError."""
    parameters = inspect.signature(function).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        positional = list(parameters)[: len(args)]
        check_names(options, [name for name in parameters if name not in facts and name not in positional], where)
    try:
        return function(*args, **facts, **options)
    except (ValueError, TypeError, FileNotFoundError) as error:
        raise ConfigError(f"{where}: {error}") from error


def plain(value: Any) -> Any:
    """A value of a config as dicts, tuples and scalars."""
    if isinstance(value, (ConfigDict, Mapping)):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(plain(v) for v in value)
    return value


def dumps(config: ConfigDict | Mapping[str, Any]) -> str:
    """The resolved config as JSON, sorted."""
    return json.dumps(plain(config), indent=2, sort_keys=True)


def digest(config: ConfigDict | Mapping[str, Any]) -> str:
    """12 hexadecimal digits that tell one resolved config from another, EXECUTION aside."""
    told = {key: value for key, value in config.items() if key not in EXECUTION}
    return hashlib.sha256(dumps(told).encode()).hexdigest()[:12]


def loads(text: str) -> ConfigDict:
    """The config of a run's config.json. Raises: ValueError for what is no JSON object."""
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError(f"a JSON object is expected, not {type(values).__name__}")
    return ConfigDict(plain(values))


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """One line for each key whose value differs, EXECUTION aside: "optimizer.lr: 0.3 -> 0.5"."""
    old_values, new_values = flatten(old), flatten(new)
    missing = "(missing)"
    return [
        f"{key}: {old_values.get(key, missing)} -> {new_values.get(key, missing)}"
        for key in sorted(old_values | new_values)
        if key.rpartition(".")[2] not in EXECUTION and old_values.get(key, missing) != new_values.get(key, missing)
    ]


def flatten(config: ConfigDict | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optimizer.lr": 0.3, ...}"""
    flat = {}
    for key, value in plain(config).items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


@contextlib.contextmanager
def user_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Ends the program with a sentence alone for what is not the program's fault: a ConfigError and the given kinds,
    whose text is for the user, and errors of the disk."""
    try:
        yield
    except (ConfigError, *kinds) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in DISK_REMEDIES:
            raise
        sys.exit(
            f"error: {error.filename or 'a file'}: {error.strerror}; {DISK_REMEDIES[error.errno]}. What was written "
            "before is as it was, and the same command goes on from there"
        )

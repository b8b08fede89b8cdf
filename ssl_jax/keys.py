"""What a key of a config is: type, default, range and meaning, all from one annotated field or argument.

    temperature: Annotated[float, POSITIVE, "Softmax temperature; 0.5 on CIFAR-10 (table 5)."] = 0.1

The check of a value, its message, `--show-config`, `--help` and docs/configs.md come from this line.
"""

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeGuard, TypeVar

Given = ParamSpec("Given")  # arguments of a function
Result = TypeVar("Result")

REQUIRED = inspect.Parameter.empty  # in place of a default


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`; the ends belong to it unless `above` and `below` say that they do not."""

    low: float = -float("inf")
    high: float = float("inf")
    above: bool = False  # low itself is out of range
    below: bool = False  # high itself is out of range

    def allows(self, value: Any) -> bool:
        """Whether a number, or each of several, is in the range. None is always allowed."""
        if value is None:
            return True
        if is_sequence(value):
            return all(map(self.allows, value))
        return (self.low < value if self.above else self.low <= value) and (
            value < self.high if self.below else value <= self.high
        )

    def __str__(self) -> str:
        low, high = (str(end) if isinstance(end, int) else f"{end:g}" for end in (self.low, self.high))
        if self.high == float("inf"):
            return f"above {low}" if self.above else f"at least {low}"
        if not (self.above or self.below):
            return f"in {low}..{high}"
        return f"in {'(' if self.above else '['}{low}, {high}{')' if self.below else ']'}"


@dataclasses.dataclass(frozen=True)
class OneOf:
    """Some values, and no others."""

    choices: tuple[Any, ...]

    def allows(self, value: Any) -> bool:
        """Whether a value, or each of several, is one of the choices. None is always allowed."""
        if is_sequence(value):
            return all(map(self.allows, value))
        return value is None or value in self.choices

    def __str__(self) -> str:
        named = ", ".join(str(choice) for choice in self.choices if choice != "")
        return f"one of {named}{', or empty' if '' in self.choices else ''}"


POSITIVE = Range(0.0, above=True)
NOT_NEGATIVE = Range(0.0)
COUNT = Range(1)  # of what there is at least one
SEED = Range(0, 2**32 - 1)  # jax.random.key takes the lowest 32 bits
SHARE = Range(0.0, 1.0)
INNER_SHARE = Range(0.0, 1.0, above=True, below=True)


@dataclasses.dataclass(frozen=True)
class Key:
    """One key.

    name: within its section. type: as annotated. default: REQUIRED where it has none. limits: each of them holds.
    meaning: a sentence, with units and source where there are any.
    """

    name: str
    type: Any
    default: Any
    limits: tuple[Range | OneOf, ...]
    meaning: str

    def check(self, value: Any) -> None:
        """Raises: ValueError for a value of another type or out of range: "temperature must be above 0, got -1.0"."""
        if not is_of(value, self.type):
            raise ValueError(f"{self.name} must be {type_name(self.type)}, got {value!r}")
        limited = f"each value of {self.name}" if isinstance(value, (tuple, list)) else self.name
        for limit in self.limits:
            if not limit.allows(value):
                raise ValueError(f"{limited} must be {limit}, got {value!r}")


@functools.cache
def keys_of(made: Callable[..., Any]) -> Mapping[str, Key]:
    """Name -> key, of those fields of a dataclass or arguments of a function whose annotation is `Annotated`."""
    function = made.func if isinstance(made, functools.partial) else made
    given = made.keywords if isinstance(made, functools.partial) else {}
    hints = typing.get_type_hints(function, include_extras=True)
    found: dict[str, Key] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        hint = hints.get(name)
        if typing.get_origin(hint) is typing.Annotated:
            of_type, *extras = typing.get_args(hint)
            limits = tuple(extra for extra in extras if isinstance(extra, (Range, OneOf)))
            meaning = " ".join(extra for extra in extras if isinstance(extra, str))
            found[name] = Key(name, of_type, given.get(name, parameter.default), limits, meaning)
    return types.MappingProxyType(found)


def check_fields(made: object) -> None:
    """Raises: ValueError for the first field of a dataclass's instance that its key does not allow."""
    for name, key in keys_of(type(made)).items():
        key.check(getattr(made, name))


def check_arguments(function: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Raises: ValueError for the first of a function's arguments, by name, that its key does not allow."""
    for name, key in keys_of(function).items():
        if name in values:
            key.check(values[name])


def checked(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """The function, which checks its arguments by their keys before it runs."""
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def check_and_call(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        check_arguments(function, dict(zip(names, args, strict=False)) | kwargs)
        return function(*args, **kwargs)

    return check_and_call


def check_order(made: Any, *names: str) -> None:
    """Raises: ValueError for the first of these fields, each (least, most), whose least is more than its most."""
    for name in names:
        least, most = getattr(made, name)
        if least > most:
            raise ValueError(f"{name} must be (least, most) with least <= most, got {(least, most)}")


def is_sequence(value: Any) -> TypeGuard[Sequence[Any]]:
    """Whether a value of a config is a tuple or a list."""
    return isinstance(value, (tuple, list))


def is_of(value: Any, hint: Any) -> bool:
    """Whether a value of a config is of an annotated type: bool, int, float, str, None, tuples and unions of these.

    An int is a float, a bool is no number, and a list is a tuple, as JSON has it.
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(is_of(value, one) for one in inner)
    if origin is tuple:
        if not is_sequence(value):
            return False
        if len(inner) == 2 and inner[1] is Ellipsis:
            return all(is_of(one, inner[0]) for one in value)
        return len(value) == len(inner) and all(map(is_of, value, inner))
    if hint is None or hint is type(None):
        return value is None
    if hint in (int, float):
        return isinstance(value, (int, float) if hint is float else int) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def type_name(hint: Any) -> str:
    """A type in words, with its article: "a number", "an integer or None", "integers (a, b)"."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(type_name, inner))
    if origin is tuple:
        one = {"a number": "numbers", "an integer": "integers", "a string": "strings"}.get(
            type_name(inner[0]), "values"
        )
        return f"a tuple of {one}" if inner[-1] is Ellipsis else f"a tuple of {len(inner)} {one}"
    names = {float: "a number", int: "an integer", str: "a string", bool: "True or False", type(None): "None"}
    return names.get(hint, str(getattr(hint, "__name__", hint)))

import ast
import dataclasses
import functools
import inspect
import math
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest

from ssl_jax import keys, models, optim
from ssl_jax.data.augment import Augmentation
from ssl_jax.data.masks import Mask
from ssl_jax.data.mix import Mix
from ssl_jax.keys import COUNT, INNER_SHARE, NOT_NEGATIVE, POSITIVE, SHARE, Key, OneOf, Range

# What a section of a config is made by -> its arguments that a config does not set.
SECTIONS = {
    **{f"model.{name}": (made, {"parent", "name"}) for name, made in models.MODELS.items()},
    **{f"optimizer.{name}": (made, {"lr", "weight_decay"}) for name, made in optim.OPTIMIZERS.items()},
    "optimizer": (optim.create, {"name", "options", "steps", "depth", "frozen_steps", "still_steps", "constant_lr"}),
    "augment": (Augmentation, set()),
    "mask": (Mask, {"patch_size"}),
    "mix": (Mix, {"sides"}),
}


@dataclasses.dataclass(frozen=True)
class Thing:
    of_run: int  # no key
    size: Annotated[int, COUNT, "Its size."]
    share: Annotated[float, INNER_SHARE, "A share.", "Half of it by default."] = 0.5
    other: float = -1.0  # no key

    def __post_init__(self):
        keys.check_fields(self)


def make(steps: int, *, rate: Annotated[float, POSITIVE, "Its rate."] = 1.0, **options: Any) -> tuple[Any, ...]:
    return steps, rate, options


@pytest.mark.parametrize(
    "limit, value, message",
    [
        (POSITIVE, 0.0, "x must be above 0, got 0.0"),
        (NOT_NEGATIVE, -0.1, "x must be at least 0, got -0.1"),
        (COUNT, 0.0, "x must be at least 1, got 0.0"),
        (SHARE, 1.5, "x must be in 0..1, got 1.5"),
        (SHARE, math.nan, "x must be in 0..1, got nan"),
        (INNER_SHARE, 0.0, "x must be in (0, 1), got 0.0"),
        (INNER_SHARE, 1.0, "x must be in (0, 1), got 1.0"),
        (Range(0.0, 1.0, below=True), 1.0, "x must be in [0, 1), got 1.0"),
        (Range(0.0, 1.0, above=True), 0.0, "x must be in (0, 1], got 0.0"),
        (Range(0.0, 0.5), 0.6, "x must be in 0..0.5, got 0.6"),
        (COUNT, (0.0, 2.0), "each value of x must be at least 1, got (0.0, 2.0)"),
        (POSITIVE, [1.0, 0.0], "each value of x must be above 0, got [1.0, 0.0]"),
        (OneOf((2.0, 3.0)), 4.0, "x must be one of 2.0, 3.0, got 4.0"),
    ],
)
def test_a_value_out_of_range_is_told_the_range(limit, value, message):
    key = Key("x", float | tuple[float, ...], 2.0, (limit,), "A number.")
    with pytest.raises(ValueError, match="x must be") as raised:
        key.check(value)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    "limit, values",
    [
        (POSITIVE, (1e-9, math.inf, None, (0.1, 2))),
        (SHARE, (0.0, 1.0, 1, (0.0, 1.0))),
        (Range(0.0, 1.0, below=True), (0.0, 0.999)),
        (Range(0.0, 1.0, above=True), (0.001, 1.0)),
        (OneOf(("a", "b")), ("a", ("b", "a"), (), None)),
    ],
)
def test_values_in_range(limit, values):
    assert all(map(limit.allows, values))


def test_the_empty_string_is_seen_among_choices():
    assert str(OneOf(("", "a", "b"))) == "one of a, b, or empty"


@pytest.mark.parametrize(
    "hint, good, bad, message",
    [
        (float, (1.5, 1, math.inf), (True, "1", None, (1.0,)), "a number"),
        (int, (1, 0), (True, 1.0, "1", None), "an integer"),
        (bool, (True, False), (1, 0, None, "True"), "True or False"),
        (str, ("", "a"), (1, None, ("a",)), "a string"),
        (float | None, (1.5, None), (False, "x"), "a number or None"),
        (tuple[int, ...], ((), (1, 2), [1, 2]), (1, (1.0,), (True,), None, {1}), "a tuple of integers"),
        (tuple[float, float], ((1, 2.0), [0.5, 1]), ((1.0,), (1.0, 2.0, 3.0), 1.0), "a tuple of 2 numbers"),
        (tuple[str, ...], (("a",), ["a"]), ("a", (1,)), "a tuple of strings"),
        (int | tuple[int, int], (1, (1, 2)), (1.0, (1, 2, 3)), "an integer or a tuple of 2 integers"),
    ],
)
def test_types(hint, good, bad, message):
    key = Key("x", hint, None, (), "It.")
    for value in good:
        key.check(value)
    for value in bad:
        with pytest.raises(ValueError, match="x must be") as raised:
            key.check(value)
        assert str(raised.value) == f"x must be {message}, got {value!r}"


def test_keys_are_what_is_annotated():
    found = keys.keys_of(Thing)
    assert list(found) == ["size", "share"]
    assert found["size"] == Key("size", int, keys.REQUIRED, (COUNT,), "Its size.")
    assert found["share"] == Key("share", float, 0.5, (INNER_SHARE,), "A share. Half of it by default.")
    assert list(keys.keys_of(make)) == ["rate"]


def test_a_partial_function_has_defaults_of_its_own():
    found = keys.keys_of(functools.partial(Thing, size=3))
    assert (found["size"].default, found["share"].default) == (3, 0.5)
    assert keys.keys_of(models.MODELS["resnet50"])["bottleneck"].default is True
    assert keys.keys_of(models.MODELS["resnet18"])["bottleneck"].default is False


def test_fields_are_checked_and_others_are_not():
    assert Thing(of_run=-1, size=2, share=0.25, other=-3.0).share == 0.25
    with pytest.raises(ValueError, match=r"^size must be at least 1, got 0$"):
        Thing(of_run=1, size=0)
    with pytest.raises(ValueError, match=r"^share must be a number, got 'x'$"):
        Thing(of_run=1, size=1, share="x")


def test_arguments_are_checked_wherever_they_are():
    checked = keys.checked(make)
    assert checked(3, rate=2, other=1) == (3, 2, {"other": 1})
    assert inspect.signature(checked) == inspect.signature(make)
    assert keys.keys_of(checked) == keys.keys_of(make)
    for call in (lambda: checked(3, rate=0.0), lambda: keys.check_arguments(make, {"rate": 0.0, "steps": "x"})):
        with pytest.raises(ValueError, match=r"^rate must be above 0, got 0.0$"):
            call()
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'steps'"):
        checked()

    @keys.checked
    def of_positions(first, second: Annotated[int, COUNT, "One."]):
        return first, second

    with pytest.raises(ValueError, match=r"^second must be at least 1, got 0$"):
        of_positions(0, 0)


def test_the_order_of_a_range_is_checked():
    thing = dataclasses.make_dataclass("Pair", ["near", "far"])((0.2, 0.2), (2.0, 1.0))
    keys.check_order(thing, "near")
    message = r"^far must be \(least, most\) with least <= most, got \(2.0, 1.0\)$"
    with pytest.raises(ValueError, match=message):
        keys.check_order(thing, "near", "far")


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_of_a_section_has_a_meaning_and_a_default_that_it_allows(section):
    made, others = SECTIONS[section]
    found = keys.keys_of(made)
    assert set(found) == set(inspect.signature(made).parameters) - others
    for key in found.values():
        assert key.meaning.endswith(".")
        assert "  " not in key.meaning
        if key.default is not keys.REQUIRED:
            key.check(key.default)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: optim.adamw(lambda _: 0.1, weight_decay=0.0, b1=1.0), r"^b1 must be in \[0, 1\), got 1.0"),
        (lambda: optim.sgd(lambda _: 0.1, weight_decay=0.0, momentum=-0.1), r"^momentum must be in \[0, 1\), got -0.1"),
        (lambda: optim.larc(lambda _: 0.1, weight_decay=0.0, clip=1), "^clip must be True or False, got 1"),
        (
            lambda: optim.adam(lambda _: 0.1, weight_decay=0.0, exempt=("bias", "x")),
            "^each value of exempt must be one",
        ),
        (lambda: optim.create("sgd", lr=0.0, warmup_steps=0, steps=1), "^lr must be above 0, got 0.0"),
        (
            lambda: optim.create("lars", lr=0.1, warmup_steps=0, steps=1, trust_coefficient=0),
            "^trust_coefficient must be",
        ),
        (lambda: models.create("split_resnet8", std=(1.0, 0.0)), "^each value of std must be above 0"),
        (
            lambda: models.create("lightness_resnet8", stem="none"),
            "^stem must be one of imagenet, deep, small, strided",
        ),
        (lambda: models.create("dcgan_discriminator", image_size=7), "^image_size must be at least 8, got 7"),
        (lambda: models.create("vit_tiny_patch16_224", image_size=(32.0, 32)), "^image_size must be an integer or a"),
        (lambda: Mask(4, (0.5, 0.5, 0.5)), "^ratio must be a tuple of 2 numbers"),
    ],
)
def test_a_direct_call_is_checked(call, message, unchecked):
    with pytest.raises(ValueError, match=message):
        call()


def test_keys_import_the_standard_library_alone():
    found = set()
    for node in ast.walk(ast.parse(Path(keys.__file__).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    assert "dataclasses" in found
    assert {name.partition(".")[0] for name in found} <= sys.stdlib_module_names

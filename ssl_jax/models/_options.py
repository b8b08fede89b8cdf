"""Keys and checks that the models share."""

from collections.abc import Iterable
from typing import Annotated, Any

from ssl_jax.keys import POSITIVE, OneOf
from ssl_jax.models.recompute import REMATS

DTYPES = ("float32", "bfloat16")

# Annotations of keys that several models have.
DType = Annotated[str, OneOf(DTYPES), "Type of the computation; parameters and features are float32."]
BranchDType = Annotated[
    str,
    OneOf(DTYPES),
    "Type of the computation within a branch. The sum that branches are added to is always float32, as under torch's",
    "autocast: with a layer_scale of 1e-4, bfloat16 would round away nearly all of a branch.",
]
Mean = Annotated[tuple[float, ...], "Mean of each channel with which the data were normalized; the model undoes it."]
Remat = Annotated[
    str,
    OneOf(REMATS),
    "What the backward pass computes again instead of keeping it. none: nothing. dots: in each block, all but the",
    "results of matrix products and convolutions. block: each block, from its input. full: groups of about sqrt(depth)",
    "blocks (a ConvNet's stages) from the group's input, and in each group each block (arXiv:1604.06174).",
]
Std = Annotated[
    tuple[float, ...],
    POSITIVE,
    "Standard deviation of each channel with which the data were normalized; the model undoes it.",
]


def check_choice(option: str, value: Any, choices: Iterable[Any]) -> None:
    """Raises: ValueError if `value` is none of `choices`."""
    if value not in choices:
        raise ValueError(f"{option}={value!r} is unknown; it is one of {', '.join(map(str, choices))}")

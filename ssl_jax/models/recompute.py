"""What a backbone's backward pass computes again instead of keeping it: the values of `remat`."""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

REMATS = ("none", "dots", "block", "full")

KEPT = "kept by dots"

M = TypeVar("M", bound=type[nn.Module])


def keep(x: Array) -> Array:
    """x, marked as one of the values that "dots" keeps: what is dear to compute again, or sent by other devices."""
    return checkpoint_name(x, KEPT)


def loop_of(step: Callable[..., Any], remat: str) -> Callable[..., Any]:
    """A loop's function of arrays, one block's or one group's, whose backward pass keeps no more than `remat` says."""
    if remat == "none":
        return step
    # Within a loop, XLA cannot merge what is computed again with what was computed before.
    return jax.checkpoint(step, prevent_cse=False, policy=_policy(remat))


def block_of(block: M, remat: str, constants: Iterable[int] = ()) -> M:
    """The module of a block, whose backward pass keeps no more than `remat` says.

    constants: which arguments of its `__call__`, counted from 1, are no arrays.
    """
    if remat == "none":
        return block
    return nn.remat(block, static_argnums=tuple(constants), policy=_policy(remat))


def group_of(run: Callable[..., Any], remat: str, constants: Iterable[int] = ()) -> Callable[..., Any]:
    """A method that runs several blocks in a row. With "full", its backward pass computes it again from its arrays.

    constants: as in `block_of`.
    """
    return nn.remat(run, static_argnums=tuple(constants)) if remat == "full" else run


def group_size(blocks: int, remat: str) -> int:
    """How many blocks in a row are one group: with "full", the divisor of their number that is nearest below its root.

    Then about 2 sqrt(blocks) inputs of blocks are kept, in place of all (Chen et al. 2016, arXiv:1604.06174).
    """
    if remat != "full":
        return blocks
    return max(size for size in range(1, math.isqrt(blocks) + 1) if blocks % size == 0)


@functools.cache  # one function, so that equal blocks are equal programs
def _policy(remat: str) -> Callable[..., Any] | None:
    return jax.checkpoint_policies.save_only_these_names(KEPT) if remat == "dots" else None

"""Sizes of views that change from step to step: `Mix`."""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Annotated

import numpy as np

from ssl_jax import keys
from ssl_jax.keys import COUNT, SHARE

DRAWN = 2**33  # of the random numbers of a step's sizes, beside those of its images


@dataclasses.dataclass(frozen=True)
class Mix:
    """Entries of sizes, one of which each step draws. All devices and processes have the same one.

    sides: {view: its side in pixels in each entry}. Views that are not named keep their size.

    Raises: ValueError for shares that do not sum to 1, and sides of another number.
    Source: the high-resolution adaptation of DINOv3, Simeoni et al. 2025, arXiv:2508.10104, and the authors' code.
    """

    shares: Annotated[
        tuple[float, ...],
        SHARE,
        "Probability of each entry of sizes, of which every step draws one; they sum to 1. The step is compiled once",
        "for each entry.",
    ]
    sides: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        keys.check_fields(self)
        if not math.isclose(sum(self.shares), 1.0, abs_tol=1e-6):
            raise ValueError(f"shares must sum to 1, got {tuple(self.shares)}, whose sum is {sum(self.shares):g}")
        if not self.sides:
            raise ValueError("shares are of sides of views, and none are given; name a view, such as view=(64, 96)")
        for view, sides in self.sides.items():
            sides_key(view).check(sides)
            if len(sides) != len(self.shares):
                raise ValueError(f"{view} must have a side for each of the {len(self.shares)} shares, got {sides}")

    def entry(self, seed: int, step: int) -> int:
        """The number of the entry of a step, counted from 0. It depends on the seed and the step alone."""
        drawn = np.random.default_rng((seed, DRAWN, step)).random()
        ends = itertools.accumulate(self.shares[:-1])
        return sum(drawn >= end for end in ends)


def sides_key(view: str) -> keys.Key:
    """The key of a view in config.mix."""
    meaning = "Side in pixels of this view, which is square, in each entry; in place of its size."
    return keys.Key(view, tuple[int, ...], keys.REQUIRED, (COUNT,), meaning)

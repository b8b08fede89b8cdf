"""Splits by name, the classes of labels, and the division of images that have no split for testing.

Images of one group (patient, scene, camera) are never divided.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int32

T = TypeVar("T")
TEST_NAMES = ("test", "validation", "val")  # one stands in for another that is missing
TEST_SHARE = 0.2


def pick(splits: Mapping[str, T], name: str, what: str, remedy: str) -> T:
    """The split of this name. Raises: ValueError, which names `what` and the remedy, if there is none."""
    names = [name, *TEST_NAMES] if name in TEST_NAMES else [name]
    found = [splits[name] for name in names if name in splits]
    if not found:
        raise ValueError(f"{what} has no split {name!r}, only {', '.join(splits)}; {remedy}")
    return found[0]


class Part(NamedTuple):
    """Images start .. end - 1 of a split."""

    split: str
    start: int
    end: int


def parts(text: str, counts: Mapping[str, int]) -> list[Part]:
    """What TFDS's notation of splits means: "train[:25%]+test[10:]".

    counts: the images of each split.
    Raises: ValueError for an unknown split, and for another notation.
    """
    if text in counts:
        return [Part(text, 0, counts[text])]

    import tensorflow_datasets as tfds  # half a second, which only slices need

    facts = {name: tfds.core.SplitInfo(name=name, shard_lengths=[count], num_bytes=0) for name, count in counts.items()}
    found = tfds.core.ReadInstruction.from_spec(text).to_absolute(facts)
    return [Part(part.splitname, part.from_, part.to) for part in found]


def divide(
    names: Sequence[str],
    classes: Sequence[Hashable],
    groups: Sequence[Any] | None = None,
    *,
    share: float = TEST_SHARE,
    salt: str = "",
) -> tuple[list[int], list[int]]:
    """(training, test): sorted positions of the images. A hash chooses a share of each class for testing.

    With groups, whole groups are chosen: a share of those in which a class is the most frequent one. Of two images or
    groups of a class at least one is for testing and one for training; a lone one is for training.

    Args:
      names: of the images. The hash is of them, or with groups of the groups' names.
      classes: one for each image.
      groups: one for each image; None if every image stands alone.
      share: in (0, 1).
      salt: another choice for another salt.
    Raises: ValueError if no class has two images, or two groups.
    """
    members: defaultdict[str, list[int]] = defaultdict(list)
    for position, unit in enumerate(names if groups is None else map(str, groups)):
        members[unit].append(position)
    of_class: defaultdict[Hashable, list[str]] = defaultdict(list)
    for unit, positions in members.items():
        of_class[Counter(classes[k] for k in positions).most_common(1)[0][0]].append(unit)
    test: list[int] = []
    for units in of_class.values():
        units.sort(key=lambda unit: hashlib.sha256(os.fsencode(salt + unit)).digest())
        count = min(max(round(share * len(units)), 1), len(units) - 1)
        test += [position for unit in units[:count] for position in members[unit]]
    if not test:
        kind = "image" if groups is None else "group"
        raise ValueError(f"{len(members)} {kind} cannot be divided for evaluation; it takes two of a class at least")
    kept = set(range(len(names))).difference(test)
    return sorted(kept), sorted(test)


def class_names(labels: Iterable[str]) -> tuple[str, ...]:
    """The different labels but "", in natural order; () for fewer than two, which tell no images apart."""
    names = sorted({label for label in labels if label}, key=natural)
    return tuple(names) if len(names) > 1 else ()


def indices(labels: Sequence[str | None], names: Sequence[str]) -> Int32[np.ndarray, " images"] | None:
    """Indices of labels into `names`, -1 for one that is not among them; None without names."""
    if not names:
        return None
    index: dict[str | None, int] = {name: k for k, name in enumerate(names)}
    return np.array([index.get(label, -1) for label in labels], np.int32)


def natural(text: str) -> list[Any]:
    """Sorts by the numbers in a text as numbers: B2, B8, B8A, B10."""
    return [int(part) if k % 2 else part for k, part in enumerate(re.split("([0-9]+)", text))]

"""What `inspect` finds, as plain values."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ssl_jax.data.distribution import Histogram

Size = tuple[int, int]  # (height, width)


@dataclasses.dataclass(frozen=True)
class Channel:
    """One channel over all images of a kind.

    least, greatest, p1, p99, mean, std: of the finite values, in the images' own units; p1 and p99 are percentiles. All
      are NaN in a channel without a finite value. p1 and p99 of floats are right to a thousandth of the ranks; all
      others are exact.
    histogram: of the same values. Where outliers make the range ten times as wide as its middle 98 %, it covers
      percentiles 0.1 to 99.9, and its first and last bin count what is beyond.
    nan, infinite: shares of all values.
    commonest, commonest_share: the finite value that occurs most often, and its share of the finite values.
    used: (greatest - least) as a share of the type's range; None for floats.
    nodata: a value so far from all others that it must stand for no measurement, and its share of the finite values;
      None if there is none. `least` to `used` leave it out.
    """

    least: float
    greatest: float
    p1: float
    p99: float
    mean: float
    std: float
    histogram: Histogram
    nan: float
    infinite: float
    commonest: float
    commonest_share: float
    used: float | None
    nodata: tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class Kind:
    """The images of one type and number of channels.

    value_range: what maps to 0..1, as config.data.value_range takes it: (low, high), or low and high of each channel.
      () for uint8, whose range is 0..255, unless it is hardly used.
    mean, std: of each channel, of values in 0..1, without `nodata`.
    nodata: values that stand for no measurement.
    """

    dtype: str
    count: int
    channels: tuple[Channel, ...]
    value_range: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    nodata: tuple[float, ...]

    @property
    def used(self) -> float | None:
        """Share of the type's range that the channels together use; None for floats."""
        shares = [channel.used for channel in self.channels if channel.used is not None]
        if not shares or self.dtype == "float32":
            return None
        ends = np.iinfo(self.dtype)
        least = min(channel.least for channel in self.channels)
        return (max(channel.greatest for channel in self.channels) - least) / (int(ends.max) - int(ends.min))


@dataclasses.dataclass(frozen=True)
class Sizes:
    """counts: (size, images of this size), the commonest size first."""

    counts: tuple[tuple[Size, int], ...]

    @property
    def least(self) -> Size:
        """(least height, least width); they may be of two images. Likewise `median` and `most`."""
        return self._of(0.0)

    @property
    def median(self) -> Size:
        return self._of(0.5)

    @property
    def most(self) -> Size:
        return self._of(1.0)

    @property
    def commonest(self) -> tuple[Size, float]:
        """(size, the share of images that have it)"""
        size, count = self.counts[0]
        return size, count / sum(count for _, count in self.counts)

    def shorter_side(self, share: float) -> int:
        """The shorter side that this share of the images does not exceed."""
        return _quantile([min(size) for size, _ in self.counts], [count for _, count in self.counts], share)

    def aspect(self) -> float:
        """The median of longer side / shorter side, from 1."""
        ratios = [max(size) / min(size) for size, _ in self.counts]
        return _quantile(ratios, [count for _, count in self.counts], 0.5)

    def _of(self, share: float) -> Size:
        counts = [count for _, count in self.counts]
        height, width = (_quantile([size[axis] for size, _ in self.counts], counts, share) for axis in (0, 1))
        return height, width


@dataclasses.dataclass(frozen=True)
class Labels:
    """counts: (class name, images), in the order of the labels, of all images, also those that were not read."""

    counts: tuple[tuple[str, int], ...]
    unlabeled: int

    @property
    def majority(self) -> tuple[str, float]:
        """(name of the largest class, its share of the labeled images)"""
        name, count = max(self.counts, key=lambda pair: pair[1])
        return name, count / max(sum(count for _, count in self.counts), 1)


@dataclasses.dataclass(frozen=True)
class Groups:
    """Patients, scenes, cameras: how many there are, and least, median and most images of one."""

    count: int
    least: int
    median: int
    most: int


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of the data.

    count, read: images that it has, and that could be read of those that were to be.
    unreadable: name -> reason.
    sizes: None if no image could be read.
    kinds: the commonest first.
    labels, groups: None if the split has none.
    constant: names of images of one value all over.
    """

    name: str
    count: int
    read: int
    unreadable: Mapping[str, str]
    sizes: Sizes | None
    kinds: tuple[Kind, ...]
    labels: Labels | None
    groups: Groups | None
    constant: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Member:
    """An image among duplicates. `label`: its class, "" without one."""

    split: str
    index: int
    name: str
    label: str


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """Images that show the same. `pictures`: some of them, small; of most duplicates there is none."""

    members: tuple[Member, ...]
    pictures: tuple[UInt8[np.ndarray, "_ _ _"], ...] = ()

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(member.split for member in self.members))

    @property
    def labels_differ(self) -> bool:
        return len({member.label for member in self.members if member.label}) > 1


@dataclasses.dataclass(frozen=True)
class Sample:
    """An image of the contact sheet, at most 96 pixels high and wide. `label`: its class, "" without one."""

    name: str
    label: str
    picture: UInt8[np.ndarray, "height width shown"]


@dataclasses.dataclass(frozen=True)
class Advice:
    """What a fact means for a config.

    topic: what it is about, in a word or two.
    says, because: what to do, and why.
    flags: for the command line that training starts with.
    warning: whether it would go wrong otherwise.
    """

    topic: str
    says: str
    because: str
    flags: tuple[str, ...] = ()
    warning: bool = False


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    splits: the one that is trained on first.
    equal: images that are equal in every pixel. near: images that show the same picture.
    shared_groups: groups that have images in several splits.
    config: what to begin with, for --config.
    """

    name: str
    splits: tuple[Split, ...]
    equal: tuple[Duplicates, ...]
    near: tuple[Duplicates, ...]
    shared_groups: tuple[str, ...]
    samples: tuple[Sample, ...]
    config: str
    advice: tuple[Advice, ...]

    @property
    def flags(self) -> tuple[str, ...]:
        """What the advice sets on the command line that training starts with."""
        return tuple(flag for advice in self.advice for flag in advice.flags)


def _quantile(values: Sequence[Any], counts: Sequence[int], share: float) -> Any:
    return np.quantile(values, share, weights=counts, method="inverted_cdf").item()

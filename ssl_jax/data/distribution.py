"""The values of one channel over many images, in bounded memory.

Integers are counted value by value, so their statistics are exact. Floats are kept as at most some ten thousand values
with a weight each: rare neighbors are merged, a value that is common stays as it is.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, Integer, Num

CHUNK = 2**22  # pixels measured at a time; float32, in which OpenCV counts, is exact up to 2**24
KEPT = 2**15  # values of a float distribution; a merged one stands for less than 1/5000 of all
BINS = 64  # of a histogram, at most


class Table(NamedTuple):
    """How often each value occurs, least value first."""

    values: Num[np.ndarray, " values"]
    counts: Integer[np.ndarray, " values"]


@dataclasses.dataclass(frozen=True)
class Histogram:
    """counts[k] values lie in edges[k]..edges[k + 1]."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Part:
    """One channel of some pixels: the finite values, and how many others there are.

    mean, squares: of floats, whose table is not exact: their mean, and the sum of squared differences from it.
    """

    table: Table
    nan: int = 0
    infinite: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @property
    def count(self) -> int:
        return int(self.table.counts.sum())


def measure(image: Num[np.ndarray, "height width channels"]) -> list[Part]:
    """Each channel of an image. uint8, uint16, int16 or float32."""
    height, width, channels = image.shape
    rows = max(CHUNK // width, 1)
    of_chunk = _floats if image.dtype.kind == "f" else _integers
    return [
        merge([of_chunk(np.ascontiguousarray(image[top : top + rows, :, channel])) for top in range(0, height, rows)])
        for channel in range(channels)
    ]


def merge(parts: Sequence[Part]) -> Part:
    """The pixels of all, at least one. Moments are merged as in Chan et al. 1979, so large means lose nothing."""
    if len(parts) == 1:
        return parts[0]
    table = _sum([part.table for part in parts])
    of_part = np.array([part.count for part in parts])
    means, squares = (np.array([getattr(part, name) for part in parts]) for name in ("mean", "squares"))
    mean = float(of_part @ means / max(of_part.sum(), 1))
    return Part(
        _compress(table),
        sum(part.nan for part in parts),
        sum(part.infinite for part in parts),
        mean,
        float(squares.sum() + of_part @ (means - mean) ** 2),
    )


def _sum(tables: Sequence[Table]) -> Table:
    values, counts = (np.concatenate(columns) for columns in zip(*tables, strict=True))
    if values.dtype.kind != "f" and len(values):  # by adding in place of sorting
        low = values.min()
        found = np.bincount(values - low, weights=counts)  # float64, exact up to 2**53
        there = np.flatnonzero(found)
        return Table(there + low, found[there].astype(np.int64))
    kept, where = np.unique(values, return_inverse=True)
    found = np.zeros(len(kept), np.int64)
    np.add.at(found, where, counts)
    return Table(kept, found)


def merge_channels(images: Sequence[Sequence[Part]]) -> list[Part]:
    """Each channel over these images, at least one, of as many channels."""
    return [merge(parts) for parts in zip(*images, strict=True)]


def mean_and_deviation(table: Table) -> tuple[float, float]:
    mean = float(np.average(table.values, weights=table.counts))
    return mean, float(np.sqrt(np.average((table.values - mean) ** 2, weights=table.counts)))


def percentiles(table: Table, shares: tuple[float, ...]) -> list[float]:
    """The least value that so many percent of all do not exceed (numpy's method "inverted_cdf")."""
    return [float(np.percentile(table.values, share, weights=table.counts, method="inverted_cdf")) for share in shares]


def moments(table: Table, low: float, high: float) -> tuple[float, float]:
    """Mean and standard deviation of clip((value - low) / (high - low), 0, 1)."""
    unit = np.clip((table.values.astype(np.float64) - low) / (high - low), 0.0, 1.0)
    mean = np.average(unit, weights=table.counts)
    return float(mean), float(np.sqrt(np.average((unit - mean) ** 2, weights=table.counts)))


def histogram(table: Table, low: float, high: float) -> Histogram:
    """At most BINS bins of equal width over low..high; of integers each bin has whole values.

    Values beyond low..high are counted in the first and the last bin.
    """
    values = np.clip(table.values, low, high)
    if table.values.dtype.kind == "f":
        counts, edges = np.histogram(values, BINS, range=(low, high if high > low else low + 1), weights=table.counts)
    else:
        first, last = int(values[0]), int(values[-1])
        width = -(-(last - first + 1) // BINS)
        edges = np.arange(first, last + width + 1, width) - 0.5
        counts, _ = np.histogram(values, edges, weights=table.counts)
    return Histogram(tuple(edges.tolist()), tuple(int(count) for count in counts))


def rounded(value: float) -> float:
    """To four digits, and no finer than 1e-6: for a config."""
    return float(f"{round(value, 6):.4g}")


def without(table: Table, value: float) -> Table:
    """The table without this value."""
    rest = table.values != value
    return Table(table.values[rest], table.counts[rest])


def _integers(pixels: Integer[np.ndarray, "height width"]) -> Part:
    low, values = int(np.iinfo(pixels.dtype).min), 2 ** (8 * pixels.itemsize)
    # OpenCV knows no signed histogram: with the highest bit turned around, int16 becomes uint16 in the same order.
    unsigned = pixels.view(np.uint16) ^ np.uint16(2**15) if low else pixels
    found = cv2.calcHist([unsigned], [0], None, [values], [0, values]).ravel()  # frees Python's lock
    there = np.flatnonzero(found)
    return Part(Table(there + low, found[there].astype(np.int64)))


def _floats(pixels: Float32[np.ndarray, "height width"]) -> Part:
    finite = pixels[np.isfinite(pixels)]
    nan = int(np.isnan(pixels).sum())
    infinite = pixels.size - len(finite) - nan
    values, counts = np.unique(finite.astype(np.float64), return_counts=True)
    if not len(values):
        return Part(Table(values, counts.astype(np.int64)), nan, infinite)
    mean = float(np.average(values, weights=counts))
    squares = float(((values - mean) ** 2) @ counts)
    return Part(_compress(Table(values, counts.astype(np.int64))), nan, infinite, mean, squares)


def _compress(table: Table) -> Table:
    """At most KEPT floats: neighbors are merged into their mean, unless one has 4 / KEPT of all or more.

    As in a t-digest (Dunning and Ertl 2019, arXiv:1902.04023, scale function k1), fewer are merged near both ends.
    """
    values, counts = table
    if len(values) <= KEPT or values.dtype.kind != "f":
        return table
    total = counts.sum()
    middle = (np.cumsum(counts) - counts / 2) / total
    group, common = np.floor(KEPT / (4 * np.pi) * np.arcsin(2 * middle - 1)), counts >= 4 * total / KEPT
    begins = np.concatenate([[True], (np.diff(group) > 0) | common[1:] | common[:-1]])
    begins[[1, 2, -1, -2]] = True  # the ends stay as they are, and what is next to them, where an end is no measurement
    starts = np.flatnonzero(begins)
    merged = np.add.reduceat(counts, starts)
    means = np.add.reduceat(values * counts, starts) / merged
    single = np.diff(np.append(starts, len(values))) == 1
    means[single] = values[starts[single]]  # (x * n) / n may differ from x in its last bit
    # Rounding may move a mean past its group's last value, but the order of values must stay.
    return Table(np.maximum.accumulate(means), merged)

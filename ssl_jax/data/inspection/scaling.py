"""Which values of an image type stand for something, and which of them map to 0 and to 1."""

from collections.abc import Sequence

import numpy as np

from ssl_jax.data.distribution import Table, percentiles
from ssl_jax.data.statistics import LITTLE

DEPTHS = (10, 12)  # bits of sensors whose values fill less than LITTLE of 16
NODATA_SHARE = 0.01  # a rarer value is an outlier
FEWEST = 8  # different values of a measurement; fewer are classes
OUTLIERS = 10.0  # times as wide as the middle 98 %: a range that outliers make


def nodata(dtype: str, table: Table) -> float | None:
    """The value that stands for no measurement: a common one at an end, farther from the rest than the rest is wide.

    None if there is no such value, if there are fewer than FEWEST values, and for uint8, where it cannot be told from
    black and white.
    """
    values, counts = table
    if dtype == "uint8" or len(values) < FEWEST:
        return None
    for end, rest in ((0, values[1:]), (-1, values[:-1])):
        gap = min(abs(float(rest[0]) - float(values[end])), abs(float(rest[-1]) - float(values[end])))
        if counts[end] >= NODATA_SHARE * counts.sum() and gap > float(rest[-1]) - float(rest[0]):
            return float(values[end])
    return None


def used(dtype: str, table: Table) -> float | None:
    """(greatest - least) as a share of the type's range; None for floats."""
    if dtype == "float32":
        return None
    ends = np.iinfo(dtype)
    return float(table.values[-1] - table.values[0]) / (int(ends.max) - int(ends.min))


def value_range(dtype: str, tables: Sequence[Table]) -> tuple[float, ...]:
    """config.data.value_range: (low, high), or low and high of each channel.

    uint8: (), unless less than a tenth of 0..255 is used. Integers of 16 bits that use less than a tenth: 0 to the
    greatest value of 10 or 12 bits if these hold all values, else least to greatest. All others: least to greatest of
    each channel, or percentiles 0.1 and 99.9 where outliers make the range ten times as wide as its middle.

    Args:
      tables: of each channel, none of them empty, without nodata.
    """
    least, greatest = (float(end) for end in (min(t.values[0] for t in tables), max(t.values[-1] for t in tables)))
    if dtype != "float32":
        ends = np.iinfo(dtype)
        if greatest - least < LITTLE * (int(ends.max) - int(ends.min)):
            depth = next((depth for depth in DEPTHS if greatest < 2**depth), 0)
            if dtype != "uint8" and depth and least >= 0 and greatest > 255:
                return (0.0, 2.0**depth - 1)
            return _ends(least, greatest)
        if dtype == "uint8":
            return ()
    pairs = [channel_range(table) for table in tables]
    return pairs[0] if len(set(pairs)) == 1 else tuple(end for pair in pairs for end in pair)


def channel_range(table: Table) -> tuple[float, float]:
    """Least and greatest; where outliers make this ten times as wide as its middle, percentiles 0.1 and 99.9."""
    least, greatest = float(table.values[0]), float(table.values[-1])
    p1, p99 = percentiles(table, (1, 99))
    if p99 > p1 and greatest - least > OUTLIERS * (p99 - p1):
        low, high = percentiles(table, (0.1, 99.9))
        return _ends(low, high)
    return _ends(least, greatest)


def _ends(low: float, high: float) -> tuple[float, float]:
    """With six digits. A channel of one value gets a range above it."""
    return float(f"{low:.6g}"), float(f"{high if high > low else low + 1.0:.6g}")

"""Measures images: type, range of values, mean and deviation of each channel."""

import collections
import functools
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from tqdm import tqdm

from ssl_jax.data import distribution
from ssl_jax.data.distribution import Part, Table
from ssl_jax.data.formats import UndecodableImage
from ssl_jax.data.given import as_source
from ssl_jax.data.normalization import DTYPES, absent, type_range
from ssl_jax.data.sources import Source, spread
from ssl_jax.data.threads import in_order

LOOKED_AT = 1000  # images: no more are measured, and they stand for all
THREADS, TOGETHER = 8, 64  # images that are merged at a time
LITTLE = 0.1  # of the range of a type: where images use less, a warning says so


def statistics(
    source: Any,
    *,
    value_range: tuple[float, ...] = (),
    percentiles: tuple[float, float] = (0.0, 100.0),
    nodata: tuple[float, ...] = (),
) -> dict[str, Any]:
    """{"channels", "dtype", "value_range", "mean", "std", "nodata"} of images, as config.data takes them.

    At most `LOOKED_AT` images are read, at equal distances, and none is kept. NaN, infinity and `nodata` are left out.

    Args:
      source: as `as_source` takes it. Images of 1 and of 3 channels may be mixed; they count as 3.
      value_range: (low, high), or low and high of each channel; (): found. Then it stays () for uint8, whose range is
        0..255, and is the least and greatest value of each channel for other types.
      percentiles: of each channel's values, in place of the least and the greatest, in 0..100.
      nodata: values that stand for no measurement; (): those that the files' metadata name.
    Returns: mean and std of each channel, of values that `value_range` maps to 0..1.
    Raises: ValueError if no image can be read, for numbers of channels that differ, and for a channel without a value.
    """
    source = as_source(source)
    nodata = nodata or source.nodata
    images = spread(len(source), LOOKED_AT)
    channels: collections.Counter[int] = collections.Counter()
    types: collections.Counter[str] = collections.Counter()
    parts: dict[int, list[list[Part]]] = {}
    work = functools.partial(_measured, source, nodata)
    with ThreadPoolExecutor(THREADS) as pool:
        found = in_order(pool, work, images.tolist(), 2 * THREADS)
        for _, measured in tqdm(found, f"measuring {source.name}", len(images), unit=" images", delay=1):
            if measured is None:
                continue
            dtype, of_image = measured
            types[dtype] += 1
            channels[len(of_image)] += 1
            waiting = parts.setdefault(len(of_image), [])
            waiting.append(of_image)
            if len(waiting) >= TOGETHER:
                waiting[:] = [distribution.merge_channels(waiting)]
    if not channels:
        raise ValueError(f"{source.name}: none of the {len(images)} images that were tried can be read")
    if set(channels) - {1, 3} and len(channels) > 1:
        listed = ", ".join(f"{number:,} of {count}" for count, number in channels.most_common())
        raise ValueError(
            f"{source.name}: the images differ in their channels ({listed}); say how many they have, "
            "config.data.channels=N, so that the others are left out"
        )
    most = max(channels)
    gray = [part * most for part in parts[1]] if len(parts) > 1 else []  # counts alike in each channel
    of_channels = distribution.merge_channels(parts[most] + gray)
    dtype = _common_type(source.name, types)
    exact = {*types} == {"float32"}
    found = _summary(source.name, dtype, of_channels, value_range, percentiles, exact=exact)
    return found | {"nodata": nodata}


def _measured(source: Source, nodata: tuple[float, ...], index: int) -> tuple[str, list[Part]] | None:
    """(type of the image, each of its channels without `nodata`); None if it cannot be read."""
    try:
        image = source[index]
    except UndecodableImage:
        return None  # the pipeline names it when it is trained on
    dtype = str(image.dtype)
    if dtype == "float32":
        missing = absent(image, nodata)
        return dtype, distribution.measure(image if missing is None else np.where(missing, np.float32(np.nan), image))
    found = distribution.measure(image)
    return dtype, [Part(functools.reduce(distribution.without, nodata, part.table)) for part in found]


def _common_type(name: str, types: collections.Counter[str]) -> str:
    dtype = str(np.result_type(*map(np.dtype, types)))
    if dtype not in DTYPES:  # such as uint16 and int16, of which int32 is the common type
        dtype = "float32"
    if len(types) > 1:
        listed = ", ".join(f"{number:,} are {one}" for one, number in types.most_common())
        logging.warning("%s: the images differ in their type (%s); all are taken as %s", name, listed, dtype)
    return dtype


def _summary(
    name: str,
    dtype: str,
    channels: Sequence[Part],
    value_range: tuple[float, ...],
    percentiles: tuple[float, float],
    *,
    exact: bool,
) -> dict[str, Any]:
    """exact: the parts have the mean and squares of all values."""
    tables = [part.table for part in channels]
    for number, table in enumerate(tables):
        if not len(table.values):
            raise ValueError(f"{name}: channel {number} has no value that is a measurement")
    whole = percentiles == (0.0, 100.0)
    chosen = value_range
    if not chosen and not (dtype == "uint8" and whole):
        ends = [distribution.percentiles(table, percentiles) for table in tables]
        chosen = tuple(end for low, high in ends for end in (low, high if high > low else low + 1.0))
    pairs = np.broadcast_to(np.reshape(chosen or type_range(dtype), (-1, 2)), (len(tables), 2)).tolist()
    if exact and whole and not value_range:  # nothing is cut off
        moments = [
            ((part.mean - low) / (high - low), np.sqrt(part.squares / part.count) / (high - low))
            for part, (low, high) in zip(channels, pairs, strict=True)
        ]
    else:
        moments = [distribution.moments(table, *pair) for table, pair in zip(tables, pairs, strict=True)]
    if dtype != "float32" and not value_range:
        _warn_of_little(name, dtype, tables)
    return {
        "channels": len(tables),
        "dtype": dtype,
        "value_range": chosen,
        "mean": tuple(distribution.rounded(mean) for mean, _ in moments),
        "std": tuple(distribution.rounded(std) or 1.0 for _, std in moments),
    }


def _warn_of_little(name: str, dtype: str, tables: Sequence[Table]) -> None:
    low, high = type_range(dtype)
    least, greatest = float(min(t.values[0] for t in tables)), float(max(t.values[-1] for t in tables))
    used = (greatest - least) / (high - low)
    if used < LITTLE:
        logging.warning(
            "%s: values lie in %g..%g, %.2g%% of the range of %s; if other images have other values, give the range of "
            "all: config.data.value_range=(%g, %g)",
            name,
            least,
            greatest,
            100 * used,
            dtype,
            least,
            2 ** np.ceil(np.log2(max(greatest + 1, 2))) - 1,
        )

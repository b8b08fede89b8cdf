"""Reads every image once, in threads, and keeps of it only numbers and, of some, a small picture."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
from jaxtyping import Num, UInt8
from tqdm import tqdm

from ssl_jax.data import distribution
from ssl_jax.data.distribution import Histogram, Part
from ssl_jax.data.formats import UndecodableImage
from ssl_jax.data.given import as_source
from ssl_jax.data.inspection import advice, duplicates, pictures, scaling
from ssl_jax.data.inspection.duplicates import Fingerprint
from ssl_jax.data.inspection.facts import (
    Channel,
    Duplicates,
    Groups,
    Inspection,
    Kind,
    Labels,
    Member,
    Sample,
    Sizes,
    Split,
)
from ssl_jax.data.normalization import DTYPES
from ssl_jax.data.sources import Source, spread
from ssl_jax.data.threads import in_order

THREADS = 8
SHEET = 60  # images of the contact sheet
TOGETHER, MOST_WAITING = 64, 2**20  # images and values that are merged at a time
PICTURED, PICTURED_MEMBERS = 12, 6  # duplicates that are shown, and images of each


def inspect(
    source: Any,
    *,
    held_out: Mapping[str, Any] = {},
    images: int = 0,
    bands: Sequence[int] = (),
    threads: int = THREADS,
) -> Inspection:
    """Looks at the images of a data set: sizes, channels, values, labels, duplicates, what cannot be read.

    Each image is read once, and those few a second time that are shown as duplicates. Only as many as there are threads
    are in memory at a time. Of each image one or two kilobytes are kept.

    Args:
      source: what is trained on, as `as_source` takes it.
      held_out: name -> images of other splits, such as {"test": test}. Statistics and advice are of `source` alone, but
        duplicates are looked for across all.
      images: how many images to read of each split, at equal distances; 0: all.
      bands: the channels that pictures show: one, or three for red, green and blue. (): the first three, or the first
        of fewer.
      threads: that read.
    Returns: what was found. An image that cannot be read is named with the reason, whatever it is.
    Raises: TypeError, ValueError for a source that `as_source` does not take; ValueError for other `bands`.
    """
    if len(bands) not in (0, 1, 3) or min(bands, default=0) < 0:
        raise ValueError(f"bands must be one channel, or three for red, green and blue, from 0; got {tuple(bands)}")
    sources = {"train": as_source(source), **{name: as_source(other) for name, other in held_out.items()}}
    looks = {name: _Look(one, images) for name, one in sources.items()}
    with ThreadPoolExecutor(threads, thread_name_prefix="inspect") as pool:
        for look in looks.values():
            look.run(pool, threads)
    splits = tuple(look.split(name) for name, look in looks.items())
    equal, near = _duplicates(looks, splits)
    equal, near = _pictured(looks, splits, equal, bands), _pictured(looks, splits, near, bands)
    shared = _shared_groups(sources)
    config, found = advice.advise(splits, equal, near, shared)
    samples = looks["train"].samples(splits[0], bands)
    return Inspection(sources["train"].name, splits, equal, near, shared, samples, config, found)


@dataclasses.dataclass(frozen=True)
class _Record:
    """What is kept of an image. parts: of each channel. picture: only of an image of the contact sheet."""

    index: int
    shape: tuple[int, int, int]
    dtype: str
    parts: list[Part]
    found: Fingerprint
    picture: np.ndarray | None

    @property
    def kind(self) -> tuple[str, int]:
        return self.dtype, self.shape[2]


class _Look:
    """One split, while it is looked at. Records are added in the order of the images, so results never differ."""

    def __init__(self, source: Source, images: int):
        self.source = source
        self.indices = spread(len(source), images or len(source))
        self.shown = set(self.indices[spread(len(self.indices), SHEET)].tolist())
        self.unreadable: dict[str, str] = {}
        self.sizes: collections.Counter[tuple[int, int]] = collections.Counter()
        self.parts: dict[tuple[str, int], list[list[Part]]] = collections.defaultdict(list)
        self.waiting = 0  # values in them
        self.count_of: collections.Counter[tuple[str, int]] = collections.Counter()
        self.prints: dict[tuple[str, int], dict[int, Fingerprint]] = collections.defaultdict(dict)
        self.constant: list[str] = []
        self.pictures: list[tuple[int, np.ndarray]] = []

    def run(self, pool: ThreadPoolExecutor, threads: int) -> None:
        total = len(self.indices)
        with tqdm(desc=f"looking at {self.source.name}", total=total, unit=" images", delay=1) as progress:
            for index, record in in_order(pool, self._record, self.indices.tolist(), 2 * threads):
                if isinstance(record, str):
                    self.unreadable[self.source.image_name(index)] = record
                else:
                    self._add(record)
                progress.update()

    def _record(self, index: int) -> _Record | str:
        """What is kept of an image, or the reason why it cannot be read."""
        try:
            image, _ = self.source.read(index)
            if problem := _problem(image):
                return problem
            parts = distribution.measure(image)
            picture = _picture(image, parts)
            found = duplicates.fingerprint(image, picture)
        except UndecodableImage as error:
            return error.reason
        except Exception as error:  # whatever a user's object raises for one image, the others are looked at
            return f"{type(error).__name__}: {error}"
        height, width, channels = image.shape
        kept = picture if index in self.shown else None
        return _Record(index, (height, width, channels), str(image.dtype), parts, found, kept)

    def _add(self, record: _Record) -> None:
        self.sizes[record.shape[:2]] += 1
        self.count_of[record.kind] += 1
        waiting = self.parts[record.kind]
        waiting.append(record.parts)
        self.waiting += sum(len(part.table.values) for part in record.parts)
        if len(waiting) >= TOGETHER or self.waiting > MOST_WAITING:
            for kind, parts in self.parts.items():
                self.parts[kind] = [distribution.merge_channels(parts)]
            self.waiting = 0
        self.prints[record.kind][record.index] = record.found
        if all(len(part.table.values) == 1 and not part.nan + part.infinite for part in record.parts):
            self.constant.append(self.source.image_name(record.index))
        if record.picture is not None:
            self.pictures.append((record.index, record.picture))

    def split(self, name: str) -> Split:
        kinds = tuple(
            _kind(dtype, count, distribution.merge_channels(self.parts[dtype, n]))
            for (dtype, n), count in self.count_of.most_common()
        )
        return Split(
            name=name,
            count=len(self.source),
            read=len(self.indices) - len(self.unreadable),
            unreadable=self.unreadable,
            sizes=Sizes(tuple(self.sizes.most_common())) if self.sizes else None,
            kinds=kinds,
            labels=_labels(self.source),
            groups=_groups(self.source),
            constant=tuple(self.constant),
        )

    def samples(self, split: Split, bands: Sequence[int]) -> tuple[Sample, ...]:
        return tuple(
            Sample(self.source.image_name(index), self.label(index), _display(picture, split, bands))
            for index, picture in self.pictures
        )

    def label(self, index: int) -> str:
        labels = self.source.labels
        if labels is None or labels.ndim != 1 or not 0 <= labels[index] < len(self.source.class_names):
            return ""
        return self.source.class_names[int(labels[index])]


def _problem(image: Any) -> str:
    """Why this is no image as `Source` has them; "" if it is one."""
    array = cast(np.ndarray, image) if isinstance(image, np.ndarray) else None
    if array is None or array.ndim != 3 or str(array.dtype) not in DTYPES:
        kind = type(cast(object, image)).__name__ if array is None else f"{array.dtype} {list(array.shape)}"
        return f"not an image [height, width, channels] of {', '.join(DTYPES)}, but {kind}"
    return "" if array.size else f"it has no pixels, {list(array.shape)}"


def _kind(dtype: str, count: int, parts: list[Part]) -> Kind:
    missing = [scaling.nodata(dtype, part.table) for part in parts]
    kept = [
        part.table if value is None else distribution.without(part.table, value)
        for part, value in zip(parts, missing, strict=True)
    ]
    channels = tuple(
        _channel(dtype, part, table, value) for part, table, value in zip(parts, kept, missing, strict=True)
    )
    nodata = tuple(sorted({value for value in missing if value is not None}))
    if not all(len(table.values) for table in kept):
        return Kind(dtype, count, channels, (), (), (), nodata)
    chosen = scaling.value_range(dtype, kept)
    ends = np.broadcast_to(np.reshape(chosen or (0.0, 255.0), (-1, 2)), (len(kept), 2))
    moments = [distribution.moments(table, low, high) for table, (low, high) in zip(kept, ends, strict=True)]
    mean, std = (tuple(distribution.rounded(moment[i]) for moment in moments) for i in (0, 1))
    return Kind(dtype, count, channels, chosen, mean, tuple(value or 1.0 for value in std), nodata)


def _channel(dtype: str, part: Part, kept: distribution.Table, nodata: float | None) -> Channel:
    values, counts = part.table
    total = part.count + part.nan + part.infinite
    nan, infinite = part.nan / total, part.infinite / total
    if not len(values):
        x = float("nan")
        return Channel(x, x, x, x, x, x, Histogram((), ()), nan, infinite, x, 0.0, None, None)
    p1, p99 = distribution.percentiles(kept, (1, 99))
    commonest = int(np.argmax(counts))
    if dtype == "float32" and nodata is None:  # more exact than the table
        mean, deviation = part.mean, float(np.sqrt(part.squares / part.count))
    else:
        mean, deviation = distribution.mean_and_deviation(kept)
    return Channel(
        least=float(kept.values[0]),
        greatest=float(kept.values[-1]),
        p1=p1,
        p99=p99,
        mean=mean,
        std=deviation,
        histogram=distribution.histogram(kept, *scaling.channel_range(kept)),
        nan=nan,
        infinite=infinite,
        commonest=float(values[commonest]),
        commonest_share=float(counts[commonest] / part.count),
        used=scaling.used(dtype, kept),
        nodata=None if nodata is None else (nodata, 1 - float(kept.counts.sum() / part.count)),
    )


def _labels(source: Source) -> Labels | None:
    labels = source.labels
    if labels is None or labels.ndim != 1 or not source.class_names:
        return None  # several labels, or a number, for each image have no balance
    counts = np.bincount(labels[labels >= 0], minlength=len(source.class_names))
    return Labels(tuple(zip(source.class_names, counts.tolist(), strict=True)), int(np.sum(labels < 0)))


def _groups(source: Source) -> Groups | None:
    if source.groups is None:
        return None
    counts = np.sort(np.unique(source.groups, return_counts=True)[1])
    return Groups(len(counts), int(counts[0]), int(counts[len(counts) // 2]), int(counts[-1]))


def _shared_groups(sources: Mapping[str, Source]) -> tuple[str, ...]:
    seen: collections.Counter[str] = collections.Counter()
    for source in sources.values():
        if source.groups is not None:
            seen.update({str(group) for group in np.unique(source.groups)})
    return tuple(sorted(group for group, splits in seen.items() if splits > 1))


def _duplicates(
    looks: Mapping[str, _Look], splits: Sequence[Split]
) -> tuple[tuple[Duplicates, ...], tuple[Duplicates, ...]]:
    """(equal images, near-duplicates), over all splits; those of several splits first, then the largest."""
    keys = {name: place for place, name in enumerate(looks)}
    prints: dict[tuple[str, int], dict[int, Fingerprint]] = collections.defaultdict(dict)
    for name, look in looks.items():
        for kind, found in look.prints.items():
            # One number for (split, image): what neighbors are looked for by.
            prints[kind].update({index * len(keys) + keys[name]: one for index, one in found.items()})

    def make(group: Sequence[int]) -> Duplicates:
        members: list[Member] = []
        for key in sorted(group, key=lambda key: (key % len(keys), key)):
            name, index = splits[key % len(keys)].name, key // len(keys)
            look = looks[name]
            members.append(Member(name, index, look.source.image_name(index), look.label(index)))
        return Duplicates(tuple(members))

    equal: list[Duplicates] = []
    near: list[Duplicates] = []
    for (dtype, channels), found in prints.items():
        order = list(found)
        groups = duplicates.equal([found[key].digest for key in order])
        equal += [make([order[place] for place in group]) for group in groups]
        copies = {order[place] for group in groups for place in group[1:]}
        kind = next(
            kind for split in splits for kind in split.kinds if (kind.dtype, len(kind.channels)) == (dtype, channels)
        )
        deviations = np.nan_to_num([channel.std for channel in kind.channels])
        first = {key: one for key, one in found.items() if key not in copies}
        near += [make(group) for group in duplicates.near_duplicates(first, deviations)]
    return tuple(sorted(equal, key=_gravity)), tuple(sorted(near, key=_gravity))


def _gravity(group: Duplicates) -> tuple[int, int]:
    return -len(group.splits), -len(group.members)


def _pictured(
    looks: Mapping[str, _Look], splits: Sequence[Split], groups: Sequence[Duplicates], bands: Sequence[int]
) -> tuple[Duplicates, ...]:
    """The groups, the first of them with pictures, for which their images are read again."""
    of_name = {split.name: split for split in splits}
    made: list[Duplicates] = []
    for group in groups[:PICTURED]:
        found: list[np.ndarray] = []
        for member in group.members[:PICTURED_MEMBERS]:
            try:
                image, _ = looks[member.split].source.read(member.index)
            except UndecodableImage:
                continue  # it was there a moment ago
            picture = _picture(image, distribution.measure(image))
            found.append(_display(picture, of_name[member.split], bands))
        made.append(dataclasses.replace(group, pictures=tuple(found)))
    return (*made, *groups[PICTURED:])


def _picture(image: np.ndarray, parts: Sequence[Part]) -> np.ndarray:
    """The image, small, without what stands for no measurement: it would outshine all else."""
    found = (scaling.nodata(str(image.dtype), part.table) for part in parts)
    return pictures.shrink(image, {value for value in found if value is not None})


def _display(
    picture: Num[np.ndarray, "height width channels"], split: Split, bands: Sequence[int]
) -> UInt8[np.ndarray, "height width shown"]:
    """Stretched from percentile 1 to 99 of all images of its kind."""
    count = picture.shape[2]
    kind = next(kind for kind in split.kinds if (kind.dtype, len(kind.channels)) == (str(picture.dtype), count))
    low, high = ([getattr(channel, end) for channel in kind.channels] for end in ("p1", "p99"))
    return pictures.displayable(picture, low, high, [band for band in bands if max(bands) < count])

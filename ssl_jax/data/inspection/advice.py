"""What the facts of a data set mean for a config: rules, each with its reason."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

from ssl_jax.data.inspection.facts import Advice, Duplicates, Kind, Sizes, Split
from ssl_jax.data.inspection.scaling import LITTLE

SIDES = (32, 64, 96, 128, 224)  # pixels that published recipes train at
FIRST_SIDE = 64  # enough for a first look, and ten times as fast as 224
MOST_SHRUNK = 4.0
FEW_ENLARGED = 0.2  # share of the images that may be smaller than what they are resized to
KEPT_SHRUNK = 2.0  # above, crops of the shrunk images in memory would be enlarged
BATCH, BATCHES_AN_EPOCH = 256, 4
EPOCHS, FEWEST_STEPS, MOST_STEPS = 100, 1000, 20_000
# Of ImageNet's 1.28 million images MoCo's queue holds 5 %, and its authors' queue for CIFAR-10 8 %.
QUEUE_SHARE, LONGEST_QUEUE = 0.1, 65_536
# DINO has 65,536 prototypes for ImageNet, 20 images each. SwAV has 3000, three for each class.
IMAGES_A_PROTOTYPE, MOST_PROTOTYPES, SWAV_PROTOTYPES = 20, 65_536, 3000
BANK_SHARE, NEIGHBORS = 0.8, 20  # of the kNN during training: share of the images that are looked among, and k
PUBLISHED_FIRST, FEW_IMAGES = 500, 5000
LABELS_A_CLASS = 10  # of the smallest linear probe
MUCH_MISSING, MUCH_COMMON = 0.05, 0.2  # shares


def advise(
    splits: Sequence[Split], equal: Sequence[Duplicates], near: Sequence[Duplicates], shared_groups: Sequence[str]
) -> tuple[str, tuple[Advice, ...]]:
    """(what to begin with, for --config; the advice). A pure function of the facts.

    Args:
      splits: the one that is trained on first.
      equal, near: duplicates across all splits. shared_groups: groups that have images in several splits.
    """
    train = splits[0]
    found = [*_unreadable(splits)]
    if train.sizes is None:
        return "simclr:folder", tuple(found)
    kind = _without_copies(train.kinds[0])
    side = _side(train.sizes)
    batch = _batch_size(train.read)
    views, views_advice = _views(kind)
    found += [
        *_leaks(splits, equal, near, shared_groups),
        *_duplicates(equal, near),
        *_constant(train),
        *_image_size(train.sizes, side),
        *_channels(train.kinds, kind),
        *_values(kind),
        views_advice,
        *_batch(train.read, batch),
        *_steps(train.read, batch),
        *_queue(train.read, batch),
        *_prototypes(train, batch),
        *_neighbors(train),
        *_stem(side),
        *_method(train.read, batch),
        *_labels(train),
        *_groups(splits),
    ]
    return ":".join(["simclr:folder", *views]), tuple(found)


def _unreadable(splits: Sequence[Split]) -> Iterator[Advice]:
    for split in splits:
        if count := len(split.unreadable):
            share = count / max(count + split.read, 1)
            yield Advice(
                "unreadable",
                f"{_images(count)} of {split.name} cannot be read; they are skipped in training.",
                f"That is {_percent(share)} of the images that were tried; the first reason: "
                f"{next(iter(split.unreadable.values()))}.",
                warning=share > 0.01 or not split.read,
            )


def _leaks(
    splits: Sequence[Split], equal: Sequence[Duplicates], near: Sequence[Duplicates], groups: Sequence[str]
) -> Iterator[Advice]:
    for which, found in (("equal", equal), ("nearly equal", near)):
        for held_out in splits[1:]:
            shared = [group for group in found if {splits[0].name, held_out.name} <= set(group.splits)]
            count = sum(member.split == held_out.name for group in shared for member in group.members)
            if count:
                yield Advice(
                    "leakage",
                    f"{'Remove' if which == 'equal' else 'Look at'} what is in both {splits[0].name} and "
                    f"{held_out.name}: {_images(count)} of {held_out.name} {'is' if count == 1 else 'are'} {which} to "
                    f"images of {splits[0].name}.",
                    "A kNN or probe finds their labels by their pixels, so its score is too high.",
                    warning=True,
                )
    if groups:
        yield Advice(
            "leakage",
            f"Keep each group in one split: {len(groups):,} {'has' if len(groups) == 1 else 'have'} images in several, "
            f"such as {groups[0]}.",
            "Images of one patient or scene are alike, so scores on others of them say little about new ones.",
            warning=True,
        )


def _duplicates(equal: Sequence[Duplicates], near: Sequence[Duplicates]) -> Iterator[Advice]:
    if copies := sum(len(group.members) - 1 for group in equal):
        yield Advice(
            "duplicates",
            f"{_images(copies)} {'is a copy' if copies == 1 else 'are copies'} of others; remove them.",
            "A contrastive loss pushes copies apart as if they were different images, and they count twice.",
        )
    if alike := sum(len(group.members) - 1 for group in near):
        yield Advice(
            "duplicates",
            f"{_images(alike)} {'shows' if alike == 1 else 'show'} almost the same as others; look at them.",
            "Re-encoded or resized copies, or neighbors in a series, count as different images.",
        )
    if count := sum(group.labels_differ for group in equal):
        yield Advice(
            "labels",
            f"{count:,} {'image is' if count == 1 else 'images are'} there with several labels; correct them.",
            "Images that are equal in every pixel have labels that differ.",
            warning=True,
        )


def _constant(train: Split) -> Iterator[Advice]:
    if count := len(train.constant):
        yield Advice(
            "blank",
            f"{_images(count)} {'has' if count == 1 else 'have'} one value all over; remove them.",
            "All their views are alike, so they teach nothing, and a contrastive loss cannot tell them apart.",
            warning=count > 0.01 * train.read,
        )


def _side(sizes: Sizes) -> int:
    """Pixels of views: the least side that shrinks the median image at most four times, if most images have it."""
    shorter, small = sizes.shorter_side(0.5), sizes.shorter_side(FEW_ENLARGED)
    side = next((side for side in SIDES if side >= FIRST_SIDE and shorter / side <= MOST_SHRUNK), SIDES[-1])
    if small >= side:
        return side
    return max([known for known in SIDES if known <= small], default=small)


def _image_size(sizes: Sizes, side: int) -> Iterator[Advice]:
    shorter = sizes.shorter_side(0.5)
    total = sum(count for _, count in sizes.counts)
    enlarged = sum(count for size, count in sizes.counts if min(size) < side) / total
    shrunk = shorter / side
    because = f"The shorter side of the median image has {shorter:,} pixels"
    if shrunk > MOST_SHRUNK:
        says = f"Train on windows of some {2 * side} pixels."
        because += f": shrunk {shrunk:.1f} times, what is smaller than {2 * shrunk:.0f} pixels vanishes."
    else:
        says = f"Train on {side} x {side} pixels."
        because += f", so it is {'kept as it is' if shrunk == 1 else f'shrunk {shrunk:.1f} times'}."
        if side < 224 <= sizes.shorter_side(FEW_ENLARGED):
            because += " More pixels show finer detail, and cost more."
    flags = [f"--config.data.image_size=({side},{side})", f"--config.augment.view.size=({side},{side})"]
    flags += [f"--config.data.window={2 * side}"] if shrunk > MOST_SHRUNK else []
    yield Advice("image size", says, because, tuple(flags), warning=shrunk > MOST_SHRUNK)
    if enlarged:
        yield Advice(
            "image size",
            f"{_percent(enlarged)} of the images are enlarged to {side} pixels.",
            "They have fewer, so their views are blurred, and a network can tell them by that.",
            warning=enlarged > FEW_ENLARGED / 2,
        )
    if KEPT_SHRUNK <= shrunk <= MOST_SHRUNK:
        yield Advice(
            "image size",
            "Crop the whole images, although a small set could be kept in memory.",
            f"In memory images are shrunk {shrunk:.1f} times first, and small crops of them are enlarged. To read "
            "each batch anew is slower.",
            ("--config.data.memory_bytes=0",),
        )
    if (aspect := sizes.aspect()) > 2:
        yield Advice(
            "image size",
            f"Cut the images into squares, or give data.image_size another shape than {side} x {side}.",
            f"The median image is {aspect:.1f} times as long as it is wide, and evaluation sees the square in its "
            f"middle, {_percent(1 / aspect)} of it.",
            warning=True,
        )


def _without_copies(kind: Kind) -> Kind:
    """The kind with one channel if its three are alike: gray images that are stored as red, green and blue."""
    if len(kind.channels) != 3 or kind.dtype != "uint8" or len(set(kind.channels)) > 1:
        return kind
    return dataclasses.replace(kind, channels=kind.channels[:1], mean=kind.mean[:1], std=kind.std[:1])


def _channels(kinds: Sequence[Kind], used: Kind) -> Iterator[Advice]:
    """`used`: the commonest kind, `_without_copies`."""
    listed = ", ".join(f"{kind.count:,} of {_kind_name(kind)}" for kind in kinds)
    numbers = sorted({len(kind.channels) for kind in kinds})
    if len(numbers) == 1 and len(used.channels) < numbers[0]:
        yield Advice(
            "channels",
            "Train on 1 channel.",
            "The three channels have the same values: the images are gray.",
            ("--config.data.channels=1",),
        )
    elif len(numbers) == 1:
        yield Advice(
            "channels",
            f"Train on {numbers[0]} {'channel' if numbers[0] == 1 else 'channels'}.",
            f"All images that were read have as many: {listed}.",
            (f"--config.data.channels={numbers[0]}",),
            warning=len(kinds) > 1,
        )
    elif set(numbers) <= {1, 3, 4} and all(kind.dtype == "uint8" for kind in kinds):
        yield Advice(
            "channels",
            "Train on 3 channels: gray images become three equal ones.",
            f"The images differ: {listed}.",
            ("--config.data.channels=3",),
        )
    else:
        most = len(kinds[0].channels)
        yield Advice(
            "channels",
            f"Train on {most} channels, and sort out the other images.",
            f"The images differ, and the others would be left out: {listed}.",
            (f"--config.data.channels={most}",),
            warning=True,
        )


def _values(kind: Kind) -> Iterator[Advice]:
    for number, channel in enumerate(kind.channels):
        missing = channel.nan + channel.infinite
        if missing > MUCH_MISSING:
            yield Advice(
                "missing values",
                f"Look at channel {number}: {_percent(missing)} of its values are NaN or infinite.",
                "They are filled in with the channel's mean.",
                warning=True,
            )
        if channel.commonest_share > MUCH_COMMON and channel.nodata is None and kind.dtype != "uint8":
            yield Advice(
                "missing values",
                f"If {channel.commonest:g} stands for no measurement in channel {number}, give "
                f"--config.data.nodata=({channel.commonest:g},).",
                f"{_percent(channel.commonest_share)} of its values are {channel.commonest:g}, more than any other.",
            )
    if kind.nodata:
        text = ",".join(f"{value:g}" for value in kind.nodata)
        yield Advice(
            "missing values",
            f"Leave out {text}.",
            "It is common, and farther from all other values than these are from each other. Mean, deviation and range "
            "here leave it out.",
            (f"--config.data.nodata=({text},)",),
            warning=True,
        )
    if not kind.mean:
        return
    flags = [f"--config.data.mean={_tuple(kind.mean)}", f"--config.data.std={_tuple(kind.std)}"]
    if kind.value_range:
        flags.insert(0, f"--config.data.value_range={_tuple(kind.value_range)}")
    little = kind.used is not None and kind.used < LITTLE
    if little:
        says = f"Give the range of the values: data.value_range={_tuple(kind.value_range)}."
        because = f"They use {_percent(kind.used or 0)} of the range of {kind.dtype}."
    else:
        says, because = "Normalize by the mean and deviation of the values.", "They were measured on all pixels read."
        if kind.value_range:
            ends = _tuple(kind.value_range) if len(kind.value_range) == 2 else "each channel's own range"
            says = f"Map {ends} to 0..1, and normalize by mean and deviation."
            because += " A range that outliers stretch is cut at percentiles 0.1 and 99.9."
    yield Advice("values", says, because, tuple(flags), warning=little)


def _views(kind: Kind) -> tuple[tuple[str, ...], Advice]:
    """(kind of views as get_config takes it, () for photos; the advice)."""
    count = len(kind.channels)
    if count == 1 and kind.dtype == "uint8":
        flags = tuple(f"--config.augment.view.{name}=0" for name in ("saturation", "hue", "grayscale"))
        return (), Advice(
            "views",
            "Views of photos without color. For x-rays or microscopy add :xray or :microscopy to --config.",
            "Gray images have no hue and no saturation.",
            flags,
        )
    if count == 1:
        return ("xray",), Advice(
            "views",
            "Views of x-rays. For microscopy take :microscopy.",
            f"Gray images of {kind.dtype} come from instruments, where the gray value itself means something.",
        )
    if count == 3 and kind.dtype == "uint8":
        return (), Advice(
            "views",
            "Views of photos. For stained tissue add :histology, for aerial images :satellite.",
            "The images have red, green and blue of 8 bits.",
        )
    return ("satellite",), Advice(
        "views",
        "Views of satellite images.",
        f"Hue and saturation are not defined for {count} channels of {kind.dtype}; brightness, contrast and turns are."
        + (" If the fourth is transparency, take --config.data.channels=3 and simclr:folder." if count == 4 else ""),
    )


def _batch_size(images: int) -> int:
    return max(_power_of_two(min(BATCH, images // BATCHES_AN_EPOCH)), 2)


def _batch(images: int, batch: int) -> Iterator[Advice]:
    if batch < BATCH:
        yield Advice(
            "batch size",
            f"Batches of {batch}.",
            f"With {_images(images)}, an epoch has {images // batch} of them; of {BATCH} it would have "
            f"{images // BATCH or 'none'}.",
            (f"--config.batch_size={batch}",),
            warning=images < 2 * BATCHES_AN_EPOCH,
        )


def _steps(images: int, batch: int) -> Iterator[Advice]:
    of_epoch = max(images // batch, 1)
    steps = min(max(EPOCHS * of_epoch, FEWEST_STEPS), MOST_STEPS)
    yield Advice(
        "steps",
        f"{steps:,} steps to begin with.",
        f"An epoch has {of_epoch:,} {'step' if of_epoch == 1 else 'steps'} of {batch} images, so these are "
        f"{steps / of_epoch:,.0f} epochs. Papers train for 100 to 1000.",
        (f"--config.steps={steps}",),
    )


def _queue(images: int, batch: int) -> Iterator[Advice]:
    size = max(_power_of_two(int(min(QUEUE_SHARE * images, LONGEST_QUEUE))), batch)
    if size < LONGEST_QUEUE:
        yield Advice(
            "queue",
            "moco_v2, moco_v2_plus, densecl, ressl, nnclr, nnbyol, nnsiam, msf, pcl, smog: "
            f"--config.method.queue_size={size}.",
            f"That is {_percent(size / images)} of the images, a multiple of the batch. A queue as long as the set has "
            "each image's own old key among its negatives.",
        )


def _prototypes(train: Split, batch: int) -> Iterator[Advice]:
    most = max(train.read // IMAGES_A_PROTOTYPE, 2)
    if most < MOST_PROTOTYPES:
        swav = min(most, SWAV_PROTOTYPES)
        text = f"swav, deepcluster_v2, sela_v2: at most {swav:,} prototypes; "
        text += f"dino, ibot, dinov2, dinov3, msn: at most {most:,}."
        because = f"So each has {IMAGES_A_PROTOTYPE} images, as in DINO on ImageNet."
        if train.labels and 3 * len(train.labels.counts) > swav:
            because += f" SwAV's authors have three for each class, which are {3 * len(train.labels.counts):,} here."
        if batch < swav:
            text += f" swav also with --config.method.queue_size={-(-swav // batch) * batch}."
            because += f" A batch of {batch} cannot fill {swav:,} prototypes evenly."
        yield Advice("prototypes", text, because)


def _neighbors(train: Split) -> Iterator[Advice]:
    if train.labels is None:
        return
    counts = sorted(count for _, count in train.labels.counts if count)
    if len(counts) < 2:
        return
    typical = max(int(BANK_SHARE * counts[len(counts) // 2]), 1)
    if typical < NEIGHBORS:
        yield Advice(
            "kNN",
            f"Look at {typical} neighbors, in place of {NEIGHBORS}.",
            f"The median class has {_images(counts[len(counts) // 2])}, so {NEIGHBORS} neighbors are mostly of other "
            "classes.",
            (f"--config.online_knn.k={typical}",),
        )


def _stem(side: int) -> Iterator[Advice]:
    if side <= 64:
        yield Advice(
            "stem",
            "resnet18 and larger: --config.model.stem=small.",
            f"ImageNet's stem would leave {side // 4} x {side // 4} positions of {side} x {side} pixels to the first "
            "stage.",
        )


def _method(images: int, batch: int) -> Iterator[Advice]:
    if images < PUBLISHED_FIRST:
        yield Advice(
            "method",
            "First measure a published backbone: ssl_jax evaluate --backbone FILE.",
            f"{_images(images)} are few to learn features from; a network that saw a million others may serve better.",
            warning=True,
        )
    if batch < BATCH or images < FEW_IMAGES:
        few = images < FEW_IMAGES
        yield Advice(
            "method",
            f"Compare simclr with vicreg, barlow_twins, byol, moco_v2{', instdisc, pirl and odc' if few else ''}.",
            "Small batches suffice for these: they need no negatives, or keep a queue"
            + (", or remember every image, which pays where each is seen often." if few else "."),
        )


def _labels(train: Split) -> Iterator[Advice]:
    if train.labels is None:
        return
    counts = train.labels.counts
    name, share = train.labels.majority
    if len(counts) > 1 and share > 0.5:
        yield Advice(
            "labels",
            "Read scores as means over classes.",
            f"Always naming {name} is right on {_percent(share)}.",
            warning=True,
        )
    if few := sum(0 < count < LABELS_A_CLASS for _, count in counts):
        yield Advice(
            "labels",
            f"{few:,} of {len(counts):,} classes have fewer than {LABELS_A_CLASS} images; merge them or add some.",
            f"A probe with {LABELS_A_CLASS} labels of each class takes all that they have.",
        )
    if empty := sum(count == 0 for _, count in counts):
        yield Advice(
            "labels", f"{empty:,} of {len(counts):,} classes have no image in {train.name}.", "They cannot be learnt."
        )


def _groups(splits: Sequence[Split]) -> Iterator[Advice]:
    groups = splits[0].groups
    if groups is not None and len(splits) == 1:
        yield Advice(
            "groups",
            "Evaluate on a split that divides no group: ssl_jax.data.split does so.",
            f"{groups.count:,} groups have up to {groups.most:,} images each, which are alike.",
        )


def _kind_name(kind: Kind) -> str:
    return f"{kind.dtype} with {len(kind.channels)} {'channel' if len(kind.channels) == 1 else 'channels'}"


def _images(count: int) -> str:
    return f"{count:,} {'image' if count == 1 else 'images'}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _tuple(values: Sequence[float]) -> str:
    return f"({','.join(f'{value:.6g}' for value in values)}{',' if len(values) == 1 else ''})"


def _power_of_two(most: int) -> int:
    """The largest power of two up to `most`; 0 if there is none."""
    return 2 ** int(math.log2(most)) if most >= 1 else 0

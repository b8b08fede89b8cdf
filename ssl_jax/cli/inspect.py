"""ssl_jax inspect DATA [--out inspect.html] [--json FILE]: looks at every image of a data set.

Says how many there are, of what sizes, channels and values, what cannot be read, what is there twice, how the labels
are balanced, and what all that means for a config.
"""

import argparse
import json
import os
import shlex
import sys
from pathlib import Path

from ssl_jax import config as configs
from ssl_jax import data, report
from ssl_jax.cli import backbones
from ssl_jax.cli.flags import user_errors
from ssl_jax.data import opening
from ssl_jax.data.inspection.facts import Inspection, Kind, Split
from ssl_jax.report import inspection as pages
from ssl_jax.workdir.files import replacing

PAGE = "inspect.html"
MOST_CHANNELS, MOST_FILES = 16, 10  # that are printed


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="ssl_jax inspect", description=__doc__)
    parser.add_argument("data", metavar="DATA", help=backbones.DATA)
    parser.add_argument("--split", help="look at this split alone; else at all that the data have")
    parser.add_argument("--images", type=int, default=0, metavar="N", help="look at N of each split, not at all")
    parser.add_argument("--bands", default="", help="channels that pictures show, from 0: RED,GREEN,BLUE or one")
    parser.add_argument("--threads", type=int, default=8, help="that read images")
    parser.add_argument("--out", type=Path, default=Path(PAGE), metavar="FILE", help=f"the page; {PAGE} if not given")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also writes what was found as JSON")
    flags = parser.parse_args(argv)
    with user_errors():
        if flags.images < 0 or flags.threads < 1:
            raise configs.ConfigError("--images must be 0 or above, and --threads 1 or above")
        for path in filter(None, (flags.out, flags.json)):
            _check_writable(path)
        splits = _open(flags.data, flags.split)
        options = dict(images=flags.images, threads=flags.threads, bands=_bands(flags.bands))
        first, *others = splits
        options["held_out"] = {name: splits[name] for name in others}
        found = configs.call(data.inspect, options, "ssl_jax inspect", splits[first])
        start = start_with(found, flags.data)
        show(found, start)
        report.write_inspection(found, flags.out, start)
        print(f"\n{flags.out}: the images, histograms and duplicates")
        if flags.json:
            with replacing(flags.json) as file:
                file.write((json.dumps(pages.plain(found), indent=2) + "\n").encode())
            print(flags.json)
        if not found.splits[0].read:
            sys.exit("error: no image could be read")


def start_with(found: Inspection, text: str) -> str:
    """The command that training starts with."""
    where = [f"--config.data.path={text}"] if opening.is_path(text) else [f"--config.data.name={text}"]
    words = ["ssl_jax", "train", "--config", found.config, *where, *found.flags, "--workdir", "runs/first"]
    command = [shlex.quote(word) for word in words]
    return " \\\n    ".join([" ".join(command[:4]), *command[4:-2], " ".join(command[-2:])])


def show(found: Inspection, start: str) -> None:
    """Prints what was found."""
    print(found.name)
    for split in found.splits:
        _show_split(split)
    for title, groups in (("equal in every pixel", found.equal), ("almost the same picture", found.near)):
        if groups:
            copies = sum(len(group.members) - 1 for group in groups)
            print(f"\n{copies:,} {'image is' if copies == 1 else 'images are'} {title} as others; the first:")
            for group in groups[:MOST_FILES]:
                print("  " + "  =  ".join(f"{member.split}: {member.name}" for member in group.members[:6]))
    for warning, title in ((True, "Look at these first"), (False, "For the config")):
        advice = [one for one in found.advice if one.warning == warning]
        if advice:
            print(f"\n{title}")
        for one in advice:
            print(f"  {one.topic}: {one.says}\n      {one.because}")
    if found.splits[0].read:
        print(f"\nTo start training\n\n{start}")


def _show_split(split: Split) -> None:
    print(f"\n{split.name}: {split.count:,} images, {split.read:,} read")
    for name, reason in list(split.unreadable.items())[:MOST_FILES]:
        print(f"  cannot be read: {name}: {reason}")
    if (more := len(split.unreadable) - MOST_FILES) > 0:
        print(f"  cannot be read: {more:,} more")
    if sizes := split.sizes:
        (height, width), share = sizes.commonest
        named = {"least": sizes.least, "median": sizes.median, "most": sizes.most}
        ends = " ".join(f"{name} {h} x {w}" for name, (h, w) in named.items())
        print(f"  height x width: {ends}; {100 * share:.3g} % are {height} x {width}")
    for kind in split.kinds:
        _show_kind(kind)
    if split.labels:
        name, share = split.labels.majority
        counts = [count for _, count in split.labels.counts]
        text = f"{len(counts)} classes of {min(counts):,} to {max(counts):,} images; {name} has {100 * share:.3g} %"
        print(f"  labels: {text}" + (f"; {split.labels.unlabeled:,} without" if split.labels.unlabeled else ""))
    if groups := split.groups:
        print(f"  groups: {groups.count:,} of {groups.least:,} to {groups.most:,} images, median {groups.median:,}")


def _show_kind(kind: Kind) -> None:
    count = len(kind.channels)
    print(f"  {kind.count:,} images of {kind.dtype}, {count} {'channel' if count == 1 else 'channels'}")
    print("    channel      least         1%       mean  deviation        99%   greatest  NaN  commonest")
    for number, channel in enumerate(kind.channels[:MOST_CHANNELS]):
        values = (channel.least, channel.p1, channel.mean, channel.std, channel.p99, channel.greatest)
        text = " ".join(f"{value:10.5g}" for value in values)
        common = f"{channel.commonest:.5g} ({100 * channel.commonest_share:.3g} %)"
        missing = f"; {channel.nodata[0]:.5g} is no measurement" if channel.nodata else ""
        print(f"    {number:7} {text} {100 * channel.nan:3.2g}%  {common}{missing}")
    if count > MOST_CHANNELS:
        print(f"    {count - MOST_CHANNELS} more channels: --json FILE has them")


def _open(text: str, split: str | None) -> dict[str, data.Source]:
    """name -> images of each split, the one that is trained on first. Raises: ConfigError."""
    if split:
        return {split: configs.call(opening.open_data, {"split": split, "channels": None}, "DATA", text)}
    return configs.call(opening.open_splits, {}, "DATA", text, None)


def _bands(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise configs.ConfigError(f"--bands must be numbers with commas, such as 3,2,1, got {text!r}") from error


def _check_writable(path: Path) -> None:
    """Raises: ConfigError if the file cannot be made, before hours of reading."""
    if not path.parent.is_dir():
        raise configs.ConfigError(f"there is no folder {str(path.parent)!r} for {path.name}; make it, or name another")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise configs.ConfigError(f"{path} cannot be written; name another file")

"""ssl_jax pack DATA --out DIR [--resize N] [--shard_mb MB] [--workers N]: packs a large set into shards with an index.

DIR then is DATA to every command, and opens at once, in little memory. The same command goes on after a kill.
"""

import argparse
import shlex

from ssl_jax import config as configs
from ssl_jax import data
from ssl_jax.cli import backbones
from ssl_jax.cli.flags import user_errors
from ssl_jax.data import packing

MOST_NAMED = 10


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="ssl_jax pack", description=__doc__)
    parser.add_argument("data", metavar="DATA", help=backbones.DATA)
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to make")
    parser.add_argument(
        "--resize", type=int, default=0, metavar="N", help="shrink images to N pixels on the shorter side; 0: none"
    )
    parser.add_argument(
        "--shard_mb",
        type=float,
        default=packing.SHARD_MB,
        metavar="MB",
        help=f"about so many megabytes a shard; {packing.SHARD_MB} if not given",
    )
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="threads; one for each core if not given")
    flags = parser.parse_args(argv)
    with user_errors():
        options = dict(resize=flags.resize, shard_mb=flags.shard_mb, workers=flags.workers)
        found = configs.call(data.pack, options, "ssl_jax pack", flags.data, flags.out)
        for split, images in found.images.items():
            shards = found.shards[split]
            print(f"{split}: {images:,} images in {shards:,} {'shard' if shards == 1 else 'shards'}")
            unreadable = found.unreadable[split]
            for name, reason in list(unreadable.items())[:MOST_NAMED]:
                print(f"  left out: {name}: {reason}")
            if len(unreadable) > MOST_NAMED:
                print(f"  left out: {len(unreadable) - MOST_NAMED:,} more, see {flags.out}/{split}.unreadable.csv")
        path = shlex.quote(f"--config.data.path={flags.out}")
        print(f"\nssl_jax train --config simclr:folder {path} --workdir runs/first")

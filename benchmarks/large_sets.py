"""Time and memory of large sets, without their images: an epoch's order, the first batch, an index of packed images.

    python benchmarks/large_sets.py                          # up to 10^9 images in an order, 10^8 in an index
    python benchmarks/large_sets.py --index=10000000 --folder=/scratch

Each line is measured in a process of its own: seconds, seconds of a processor, and the megabytes of resident memory
that came to those after the imports. An index of 10^8 images takes some 6 GB in the folder, which are removed again.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from ssl_jax.data import packed_index
from ssl_jax.data.packed_index import ROW, PackedSplit

ORDERS = (10**6, 2**22 - 1, 2**22, 10**7, 10**8, 10**9, 2**31 + 10, 10**12)
IN_A_SHARD = 5000  # images of 50 kB in 256 MB
PART = 10**6
NAME, DIGITS = b"a class of images/", 12
MEASURE = """
import json, sys, time
import numpy as np
from ssl_jax.data import pipeline
from ssl_jax.data.crop import RandomCrop
from ssl_jax.data.order import epoch_order
from ssl_jax.data.packed_source import packed_splits
from ssl_jax.data.sources import Source

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6

class Fake(Source):
    name, labels = "fake", None
    def __len__(self):
        return count
    def read(self, index):
        return np.full((64, 64, 3), index % 256, np.uint8), -1

what, argument = sys.argv[1:]
before, begun, worked = resident(), time.perf_counter(), time.process_time()
if what == "order":
    count = int(argument)
    epoch_order(np.arange(4096), seed=0, epoch=0, num_images=count)
elif what == "batch":
    count = int(argument)
    crops = [RandomCrop((32, 32), (0.2, 1.0), (3 / 4, 4 / 3))] * 2
    options = dict(seed=0, batch_size=256, prefetch=0, image_size=(32, 32), crops=crops, memory_bytes=0)
    next(pipeline.train_batches(Fake(), **options))
else:
    source = packed_splits(argument, None)["train"]
    took = time.perf_counter() - begun, time.process_time() - worked
    print(json.dumps([f"opened, {len(source):,} images", *took, resident() - before]))
    begun, worked = time.perf_counter(), time.process_time()
    for index in np.random.default_rng(0).integers(len(source), size=1000).tolist():
        assert source.image_name(index) == f"a class of images/{index:012d}" and source.label(index) == index % 1000
    what = "1,000 names and labels anywhere in it"
print(json.dumps([what, time.perf_counter() - begun, time.process_time() - worked, resident() - before]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=int, default=10**8, help="images in the index; 0: no index is made")
    parser.add_argument("--folder", help="for the index; the system's for temporary files if not given")
    parser.add_argument("--index_only", action="store_true", help="leaves out the orders and batches")
    flags = parser.parse_args()
    print(f"{'':60} seconds  of a processor       MB")
    for what, title in (("order", "4,096 images of an epoch of"), ("batch", "the first batch of 256 of")):
        for count in () if flags.index_only else ORDERS:
            show(measure(what, str(count)), f"{title} {count:,}")
    if flags.index:
        with tempfile.TemporaryDirectory(dir=flags.folder) as folder:
            begun = time.perf_counter()
            make_index(Path(folder), flags.index)
            print(f"{'writing an index':60} {time.perf_counter() - begun:7.1f}")
            show(measure("index", folder))


def make_index(root: Path, count: int) -> None:
    """What `ssl_jax pack` would write beside the shards, which are empty here."""
    shards = tuple(min(IN_A_SHARD, count - start) for start in range(0, count, IN_A_SHARD))
    for number in range(len(shards)):
        (root / packed_index.shard_name("train", number, len(shards))).touch()
    powers = 10 ** np.arange(DIGITS)[::-1]
    row_file = np.lib.format.open_memmap(root / "train.rows.npy", "w+", ROW, (count,))
    labels = np.lib.format.open_memmap(root / "train.labels.npy", "w+", np.int32, (count,))
    with (root / "train.names").open("wb") as names:
        for start in range(0, count, PART):  # many at a time: `packed_index.write_rows` takes minutes
            indices = np.arange(start, min(start + PART, count))
            letters = np.full((len(indices), len(NAME) + DIGITS), ord("0"), np.uint8)
            letters[:, : len(NAME)] = np.frombuffer(NAME, np.uint8)
            letters[:, len(NAME) :] += (indices[:, None] // powers % 10).astype(np.uint8)
            names.write(letters.tobytes())
            row_file["name_end"][indices] = (indices + 1) * letters.shape[1]
            row_file["label"][indices] = labels[indices] = indices % 1000
    row_file.flush()
    labels.flush()
    split = PackedSplit("0" * 12, shards, True, tuple(map(str, range(1000))), labeled=True)
    packed_index.write(root, {"train": split}, {})


def measure(what: str, argument: str) -> list[list]:
    command = [sys.executable, "-c", MEASURE, what, argument]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [json.loads(line) for line in lines.splitlines()]


def show(found: list[list], title: str = "") -> None:
    for name, seconds, processor, megabytes in found:
        print(f"{title or name:60} {seconds:7.3f} {processor:15.3f} {megabytes:8.1f}", flush=True)


if __name__ == "__main__":
    main()

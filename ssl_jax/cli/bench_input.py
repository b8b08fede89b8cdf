"""ssl_jax bench-input DATA [--image_size N] [--views N] [--threads 1,2,4] [--seconds S]: how fast images are read.

Reads, decodes and crops as `ssl_jax train` does. Says how many images/s each stage and whole batches give, with how
many threads, and what limits them.
"""

import argparse

from ssl_jax import config as configs
from ssl_jax import data
from ssl_jax.cli import backbones
from ssl_jax.cli.flags import user_errors
from ssl_jax.data import opening
from ssl_jax.data.input_speed import InputSpeed
from ssl_jax.data.pipeline import ImagesError

EXPECTED = (1, 4, 16, 64)  # cores


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="ssl_jax bench-input", description=__doc__)
    parser.add_argument("data", metavar="DATA", help=backbones.DATA)
    parser.add_argument("--split", default="train", help="of the data; train if not given")
    parser.add_argument("--image_size", default="224", help="of the crops, in pixels, SIDE or HEIGHTxWIDTH")
    parser.add_argument("--views", type=int, default=2, metavar="N", help="crops of each image; 2 if not given")
    parser.add_argument("--threads", default="", help="numbers of threads, as 1,2,4; up to the cores if not given")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="to measure for; 10 if not given")
    flags = parser.parse_args(argv)
    with user_errors(ImagesError):
        options = dict(
            image_size=backbones.size_of(flags.image_size),
            views=flags.views,
            threads=_threads(flags.threads),
            seconds=flags.seconds,
        )
        options_of_data = {"split": flags.split, "channels": None}
        source = configs.call(opening.open_data, options_of_data, "DATA", flags.data)
        found = configs.call(data.measure_input, options, "ssl_jax bench-input", source, progress=True)
        print(f"{source.name}: {found.images:,} images; {found.crops} crops of {' x '.join(map(str, found.size))} each")
        show(found)


def show(found: InputSpeed) -> None:
    """Prints what was measured."""
    if not found.decoded:
        print("they are arrays in memory or a file: nothing is decoded")
    if found.kept:
        print("ssl_jax train keeps this set in memory at this size (data.memory_bytes), so no step waits for its files")
    for name, reason in list(found.skipped.items())[:3]:
        print(f"cannot be read: {name}: {reason}")
    print("\none image, in one thread                 images/s   ms of a processor   ms of the clock")
    for stage in found.stages:
        per_second = 1e3 / max(stage.clock_ms, 1e-6)
        print(f"  {stage.name:36} {per_second:10,.0f}   {stage.processor_ms:17.3f}   {stage.clock_ms:15.3f}")
    print("\nwhole batches                            images/s   ms of a processor   busy cores")
    for made in found.batches:
        name = f"{made.threads} {'thread' if made.threads == 1 else 'threads'}"
        print(f"  {name:36} {made.images_per_second:10,.0f}   {made.processor_ms:17.3f}   {made.busy_cores:10.2f}")
    print(f"\nPython's lock is held for about {found.lock_ms:.2f} ms of an image")
    print(f"What limits: {found.limit}")
    expected = ", ".join(f"{found.expected(cores):,.0f} with {cores}" for cores in EXPECTED)
    cores = f"{found.cores} {'core' if found.cores == 1 else 'cores'}"
    print(f"This process may use {cores}. Images/s that a training could get of cores like these: {expected}")


def _threads(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise configs.ConfigError(f"--threads must be numbers with commas, such as 1,2,4, got {text!r}") from error

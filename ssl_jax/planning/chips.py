"""TPU chips and the slices that they are rented in.

Source: Google Cloud's pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" (cloud.google.com/tpu/docs/v4, and so on),
their tables of specifications as of 2025; v4's links: Jouppi et al. 2023, arXiv:2304.01433, table 4. Memory: what
libtpu 0.0.52 reports as available when a program needs more; for a v5e, 15.75 of the 16 GiB.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

from ssl_jax.planning.program import Collective

# Time of one hop from chip to chip: "How to Scale Your Model" (jax-ml.github.io/scaling-book), sharding, "about 1 us".
HOP_SECONDS = 1e-6

ASSUMPTIONS = (
    "arithmetic and memory run at the chip's peak rates and overlap; measured steps take longer, often twice as long: "
    "--calibrate measures how much",
    "all products count as bfloat16; in float32 with precision 'highest' they take six times as long",
    "FLOPs are the compiler's; work of logged steps counts in each step; after a loop's first round "
    "only products count",
    "memory traffic is that of the compiled instructions: only the parts that they slice or gather, "
    "otherwise whole arrays",
    "collectives run at the links' full rate over all axes of the slice, those of a line of chips over "
    "its axis, permutations over one link to a neighbor, with 1 us a hop; fastest: all are hidden behind "
    "the arithmetic, slowest: none is",
    "the hosts deliver images in time; compiling, evaluating and saving take no time",
)


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one kind of chip offers.

    memory: bytes of HBM that a program may have.
    flops: FLOPs a second, the peak in bfloat16.
    memory_bandwidth: bytes a second.
    link_bandwidth: bytes a second, in one direction, of one link to a neighbor (Google gives the sum over links and
      directions).
    largest: the largest slice, in chips along each axis.
    wraps: the two ends of an axis are linked if the axis' size is a multiple of this. With three axes, all sizes must
      be multiples, as only slices of whole cubes have such links.
    accelerator: Google's name of a slice, before the number of its cores. cores: of one chip, as that name counts them.
    """

    name: str
    memory: int
    flops: float
    memory_bandwidth: float
    link_bandwidth: float
    largest: tuple[int, ...]
    wraps: int
    accelerator: str
    cores: int

    def arithmetic_seconds(self, flops: Mapping[str, float]) -> float:
        """Of FLOPs by type of the operands; all count as bfloat16."""
        return sum(flops.values()) / self.flops


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", int(30.75 * 2**30), 275e12, 1200e9, 50e9, (16, 16, 16), 4, "v4", 2),
        Chip("v5e", int(15.75 * 2**30), 197e12, 819e9, 50e9, (16, 16), 16, "v5litepod", 1),
        Chip("v5p", int(95.73 * 2**30), 459e12, 2765e9, 100e9, (16, 16, 24), 4, "v5p", 2),
        Chip("v6e", int(31.24 * 2**30), 918e12, 1640e9, 100e9, (16, 16), 16, "v6e", 1),
    )
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """`shape`: chips along each axis."""

    chip: Chip
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def memory(self) -> int:
        """Bytes that a program may have on each chip."""
        return self.chip.memory

    @property
    def largest(self) -> int:
        return math.prod(self.chip.largest)

    @property
    def assumptions(self) -> tuple[str, ...]:
        return ASSUMPTIONS

    @property
    def accelerator_type(self) -> str:
        """ "v5litepod-256": the name to rent it by."""
        return f"{self.chip.accelerator}-{self.chips * self.chip.cores}"

    @property
    def links(self) -> int:
        """Links of a chip that a collective over all chips can use at the same time: two along an axis whose ends are
        linked, one along any other axis (the last chip has only one)."""
        return sum(1 + self._wraps(size) for size in self.shape if size > 1)

    @property
    def hops(self) -> int:
        """Hops between the two chips that are farthest apart."""
        return sum(size // 2 if self._wraps(size) else size - 1 for size in self.shape)

    def reach(self, group: int) -> tuple[int, int]:
        """(links of a chip, hops) of a collective among groups of so many chips: lines along an axis if it has as many,
        otherwise as of all chips."""
        if group == self.chips or group not in self.shape:
            return self.links, self.hops
        wraps = self._wraps(group)
        return 1 + wraps, group // 2 if wraps else group - 1

    def send(self, collective: Collective) -> tuple[float, float]:
        """(bytes that one link carries in one direction, seconds) of a collective, each time that a step runs it."""
        links, hops = (1, 1) if collective.kind == "collective-permute" else self.reach(collective.group)
        sent = collective.sent_bytes / links
        rounds = 2 if collective.kind == "all-reduce" else 1
        return sent, sent / self.chip.link_bandwidth + rounds * hops * HOP_SECONDS

    def _wraps(self, size: int) -> bool:
        sizes = self.shape if len(self.shape) == 3 else (size,)
        return all(size % self.chip.wraps == 0 for size in sizes)


def parse_slice(text: str) -> Slice:
    """The slice "v5e:16x16", also written as "V5E: 16x16" or by the name to rent it by, "v5litepod-256".

    Raises: ValueError if there is no such slice.
    """
    plain = "".join(text.lower().split())
    if rented := re.fullmatch(r"(\w+)-(\d+)", plain):
        plain = _usual_slice(text, rented[1], int(rented[2]))
    name, _, shape = plain.partition(":")
    if name not in CHIPS:
        raise ValueError(f"topology {text!r}: no chip {name!r}; it is CHIP:SHAPE with one of {', '.join(CHIPS)}")
    chip = CHIPS[name]
    axes = len(chip.largest)
    sizes = shape.split("x")
    if len(sizes) != axes or not all(size.isdecimal() for size in sizes):
        example = f"{name}:{'x'.join(['4'] * axes)}"
        raise ValueError(f"topology {text!r}: {name} has {axes} axes of chips, as in {example}")
    if not all(map(int, sizes)):
        raise ValueError(f"topology {text!r}: an axis of 0 chips; each has 1 or more")
    place, largest = Slice(chip, tuple(map(int, sizes))), Slice(chip, chip.largest)
    # With three axes, optical switches join cubes in any shape, such as 12x12x24. With two, the chips stay in place.
    if place.chips > largest.chips or (axes == 2 and max(place.shape) > max(largest.shape)):
        raise ValueError(f"topology {text!r}: the largest slice of {name} is {largest.name}")
    return place


def _usual_slice(text: str, accelerator: str, cores: int) -> str:
    """The slice, with its shape, that Google gives for a number of cores: sizes are powers of two, as equal as
    possible, and the last axes are the longer ones. Raises: ValueError if there is no such shape."""
    known = {chip.accelerator: chip for chip in CHIPS.values()} | CHIPS
    if accelerator not in known:
        names = ", ".join(f"{chip.accelerator}-{4 * chip.cores}" for chip in CHIPS.values())
        raise ValueError(f"topology {text!r}: no accelerator {accelerator!r}; there are {names}, and so on")
    chip = known[accelerator]
    chips, odd = divmod(cores, chip.cores)
    if odd or chips.bit_count() != 1:
        example = Slice(chip, (4,) * len(chip.largest)).name
        raise ValueError(f"topology {text!r}: {cores / chip.cores:g} chips have no usual shape; give one, {example}")
    axes = len(chip.largest)
    powers = [(chips.bit_length() - 1 + axis) // axes for axis in range(axes)]
    if chips == 4 and axes == 3:
        powers = [1, 1, 0]  # a host's chips
    return Slice(chip, tuple(2**power for power in powers)).name

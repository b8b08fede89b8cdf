"""How long a step takes at least: arithmetic, memory and links, each at the chip's full rate."""

import dataclasses
from collections.abc import Iterable

from ssl_jax.planning.chips import Slice
from ssl_jax.planning.program import Collective

# Time of one hop from chip to chip: "How to Scale Your Model" (jax-ml.github.io/scaling-book), sharding, "about 1 us".
HOP_SECONDS = 1e-6

ASSUMPTIONS = (
    "arithmetic and memory run at the chip's peak rates and overlap; measured steps take longer, often twice as long",
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
class Roofline:
    """Seconds of a step on each chip. link_bytes: bytes that one link carries in one direction."""

    compute: float
    memory: float
    links: float
    link_bytes: float

    @property
    def fastest(self) -> float:
        """Seconds if all runs at the same time."""
        return max(self.compute, self.memory, self.links)

    @property
    def slowest(self) -> float:
        """Seconds if the collectives run after the rest."""
        return max(self.compute, self.memory) + self.links

    @property
    def bound(self) -> str:
        """What limits the fastest step."""
        return max(("compute", "memory", "links"), key=lambda name: getattr(self, name))

    def utilization(self, seconds: float) -> float:
        """The share of the peak arithmetic, in 0..1, that a step of that length reaches."""
        return self.compute / seconds


def roofline(place: Slice, *, flops: float, memory_bytes: float, collectives: Iterable[Collective]) -> Roofline:
    """`flops`, `memory_bytes`: of one chip's step. `collectives` in branches do not count."""
    chip, link_bytes, seconds = place.chip, 0.0, 0.0
    for collective in collectives:
        if collective.conditional or not place.links:
            continue
        neighbors = collective.kind == "collective-permute"
        links, hops = (1, 1) if neighbors else place.reach(collective.group)
        sent = collective.times * collective.sent_bytes / links
        rounds = collective.times * (2 if collective.kind == "all-reduce" else 1)
        link_bytes += sent
        seconds += sent / chip.link_bandwidth + rounds * hops * HOP_SECONDS
    return Roofline(flops / chip.flops, memory_bytes / chip.memory_bandwidth, seconds, link_bytes)

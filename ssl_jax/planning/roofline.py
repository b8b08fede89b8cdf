"""How long a step takes at least: arithmetic, memory and links, each at the chip's full rate."""

import dataclasses
from collections.abc import Iterable, Mapping

from ssl_jax.planning.places import Place
from ssl_jax.planning.program import Collective


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


def roofline(
    place: Place, *, flops: Mapping[str, float], memory_bytes: float, collectives: Iterable[Collective]
) -> Roofline:
    """`flops`: by type of the operands. `flops`, `memory_bytes`: of one chip's step. `collectives` in branches do not
    count."""
    link_bytes, seconds = 0.0, 0.0
    for collective in collectives:
        if not collective.conditional and place.chips > 1:
            sent, lasts = place.send(collective)
            link_bytes += collective.times * sent
            seconds += collective.times * lasts
    chip = place.chip
    return Roofline(chip.arithmetic_seconds(flops), memory_bytes / chip.memory_bandwidth, seconds, link_bytes)

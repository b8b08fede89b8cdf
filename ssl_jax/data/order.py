"""The order of an epoch: a permutation of the images that seed and epoch alone decide.

Up to DRAWN_BELOW images it is NumPy's, drawn as a whole. Above, each position is computed by itself, so the order takes
no memory, and any batch of any epoch takes the same time.
"""

import dataclasses
import functools
import math

import numpy as np
from jaxtyping import Int, Int64, UInt64

DRAWN_BELOW = 2**22  # images; drawing so many takes 0.3 s and 34 MB, ten million 1 s
ROUNDS = 8
# The multipliers of the finalizer of splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number
# generators", with the constants of Stafford's variant 13), and its odd step, the golden ratio in 64 bits.
MIX, STEP = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)), np.uint64(0x9E3779B97F4A7C15)


def epoch_order(
    positions: Int[np.ndarray, " positions"], *, seed: int, epoch: int, num_images: int
) -> Int64[np.ndarray, " positions"]:
    """The images at some positions of an epoch's order. Over all positions each image comes once.

    Args:
      positions: in 0..num_images - 1.
      seed, epoch: >= 0; another order for others.
      num_images: 1 to 2^62.
    """
    if num_images < DRAWN_BELOW:
        return _drawn(seed, epoch, num_images)[positions]
    return _keyed(seed, epoch, num_images)(positions)


@dataclasses.dataclass(frozen=True)
class KeyedPermutation:
    """A permutation of 0..size - 1 in constant memory, the same on every machine: all arithmetic is in uint64.

    A number below `side`^2 has two digits to the base `side`. In each round of a Feistel network one digit is moved by
    a hash of the other, modulo `side`. Since side^2 may exceed `size`, results that are too large go through the
    network again ("cycle walking"): of a set of n images a share of at most 2 / sqrt(n).

    Source: Black and Rogaway 2002, "Ciphers with arbitrary finite domains", sections 4 (cycle walking) and 5
      (generalized Feistel). They ask for more than this: no one who sees some positions should guess others. Here the
      order only has to look random, so a fast hash takes the place of a cipher, with 8 rounds instead of 3.

    Attributes:
      size: 1 to 2^62.
      keys: one a round.
    """

    size: int
    keys: tuple[np.uint64, ...]

    @classmethod
    def of(cls, size: int, *words: int) -> "KeyedPermutation":
        """words: integers >= 0 that choose the permutation."""
        if not 1 <= size <= 2**62:
            raise ValueError(f"an order has 1 to 2^62 images, got {size}")
        return cls(size, tuple(np.random.SeedSequence(words).generate_state(ROUNDS, np.uint64)))

    def __call__(self, positions: Int[np.ndarray, " positions"]) -> Int64[np.ndarray, " positions"]:
        """The image at each position. positions: in 0..size - 1."""
        found = self._network(np.asarray(positions).astype(np.uint64))
        outside = np.flatnonzero(found >= np.uint64(self.size))
        while len(outside):
            found[outside] = self._network(found[outside])
            outside = outside[found[outside] >= np.uint64(self.size)]
        return found.astype(np.int64)

    def _network(self, x: UInt64[np.ndarray, " positions"]) -> UInt64[np.ndarray, " positions"]:
        side = np.uint64(math.isqrt(self.size - 1) + 1)
        high, low = np.divmod(x, side)
        for key in self.keys:
            high, low = low, (high + _hash(low, key) % side) % side
        return high * side + low


def _hash(x: UInt64[np.ndarray, " values"], key: np.uint64) -> UInt64[np.ndarray, " values"]:
    """Of arrays only: they wrap around without a warning."""
    x = (x + np.uint64(1)) * STEP + key
    x = (x ^ (x >> np.uint64(30))) * MIX[0]
    x = (x ^ (x >> np.uint64(27))) * MIX[1]
    return x ^ (x >> np.uint64(31))


# Around the end of an epoch, batches of two epochs are made at the same time.
@functools.lru_cache(maxsize=2)
def _drawn(seed: int, epoch: int, num_images: int) -> Int64[np.ndarray, " images"]:
    return np.random.default_rng((seed, epoch)).permutation(num_images)


@functools.lru_cache(maxsize=2)
def _keyed(seed: int, epoch: int, num_images: int) -> KeyedPermutation:
    return KeyedPermutation.of(num_images, seed, epoch)

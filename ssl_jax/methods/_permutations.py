"""The permutations that a jigsaw's solver tells apart."""

import functools
import itertools

import numpy as np
from jaxtyping import Int

CRITERIA = ("mean", "min")


@functools.lru_cache(maxsize=4)
def far_permutations(
    tiles: int, count: int, *, criterion: str = "mean", seed: int = 0
) -> Int[np.ndarray, "count tiles"]:
    """`count` permutations of `tiles` that are far from each other in Hamming distance, found greedily.

    The first is drawn; each further one is that of all permutations with the largest mean, or minimum (`criterion`),
    distance to those that are there, the first of several. All of the 9! = 362,880 of 9 tiles are looked at each time.

    Raises: ValueError for more than there are, an unknown criterion, or more than 9 tiles, which would take long.
    Source: Noroozi & Favaro 2016, arXiv:1603.09246, algorithm 1, which has the minimum; the mean is their code's.
    """
    if criterion not in CRITERIA:
        raise ValueError(f"criterion must be one of {', '.join(CRITERIA)}, got {criterion!r}")
    if not 1 <= tiles <= 9:
        raise ValueError(f"tiles must be in 1..9, got {tiles}")
    # In columns: each comparison reads one.
    pool = np.array(list(itertools.permutations(range(tiles))), np.int8).T.copy()
    if not 1 <= count <= pool.shape[1]:
        raise ValueError(f"there are {pool.shape[1]} permutations of {tiles} tiles, not {count}")
    best = np.full(pool.shape[1], tiles, np.int32) if criterion == "min" else np.zeros(pool.shape[1], np.int32)
    chosen = [int(np.random.default_rng(seed).integers(pool.shape[1]))]
    while len(chosen) < count:
        distance = sum((column != column[chosen[-1]]).astype(np.int32) for column in pool)
        best = np.minimum(best, distance) if criterion == "min" else best + distance
        best[chosen] = -1
        chosen.append(int(np.argmax(best)))
    return pool[:, chosen].T.astype(np.int32)

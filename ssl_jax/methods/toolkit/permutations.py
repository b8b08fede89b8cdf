"""The permutations of tiles that jigsaw tells apart."""

import functools
import itertools

import numpy as np
from jaxtyping import Int

CRITERIA = ("mean", "min")  # of the distances to the permutations that are chosen already


@functools.lru_cache(maxsize=4)
def far_permutations(
    tiles: int, count: int, *, criterion: str = "mean", seed: int = 0
) -> Int[np.ndarray, "count tiles"]:
    """Finds `count` permutations of `tiles` that are far from each other in Hamming distance, greedily.

    The first permutation is random. Each further one has the largest mean or minimum (`criterion`) of the distances to
    those that are chosen already; of several such, it is the first. Each choice looks at all permutations: for 9 tiles
    9! = 362,880.

    Raises: ValueError if there are fewer permutations than `count`, for an unknown criterion, and for more than 9
      tiles, which would take long.
    Source: Noroozi & Favaro 2016, arXiv:1603.09246, algorithm 1. It has the minimum, the authors' code the mean.
    """
    if criterion not in CRITERIA:
        raise ValueError(f"criterion must be one of {', '.join(CRITERIA)}, got {criterion!r}")
    if not 1 <= tiles <= 9:
        raise ValueError(f"tiles must be in 1..9, got {tiles}")
    # [tiles, permutations]: each comparison reads one row.
    pool = np.array(list(itertools.permutations(range(tiles))), np.int8).T.copy()
    all_of_them: int = pool.shape[1]
    if not 1 <= count <= all_of_them:
        raise ValueError(f"there are {all_of_them} permutations of {tiles} tiles, not {count}")
    best = np.full(all_of_them, tiles, np.int32) if criterion == "min" else np.zeros(all_of_them, np.int32)
    chosen = [int(np.random.default_rng(seed).integers(all_of_them))]
    while len(chosen) < count:
        distance = sum((row != row[chosen[-1]]).astype(np.int32) for row in pool)
        best = np.minimum(best, distance) if criterion == "min" else best + distance
        best[chosen] = -1
        chosen.append(int(np.argmax(best)))
    return pool[:, chosen].T.astype(np.int32)

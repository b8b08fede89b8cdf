"""The rows of a bank that are most similar to queries, on a CPU: products by NumPy's BLAS, and few candidates to sort.

A part of the bank tells how similar the k nearest rows about are. Then only rows above that are looked at, some 2 k for
each query. Where there turn out to be fewer than k, the query is searched again, from no similarity on.
"""

import functools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from ssl_jax.data.threads import in_order, usable_cores
from ssl_jax.ops import normalize

QUERIES = 1024  # searched at a time by each thread, at most
NORMALIZED = 2**16  # rows normalized at a time by each thread
SAMPLE = 4096  # rows of the bank that are looked at first; a bank of fewer than 4 times as many is not sampled
CANDIDATES = 2**21  # held for the queries of a thread before all but the best are dropped


class Candidates(NamedTuple):
    """Rows of the bank, each with the query that it may belong to; a query's rows are in ascending order where they are
    equally similar."""

    query: Int[np.ndarray, " found"]
    row: Int[np.ndarray, " found"]
    similarity: Float[np.ndarray, " found"]


def nearest(
    bank: Float[np.ndarray, "rows dim"], queries: Float[np.ndarray, "queries dim"], *, k: int, block_size: int
) -> tuple[Float[np.ndarray, "queries k"], Int[np.ndarray, "queries k"]]:
    """(cosine similarities, rows), see `search.nearest`. k: at most the number of rows."""
    similarities, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    threads = usable_cores()
    # As many chunks for each thread, so that none is idle at the end.
    count = min(-(-len(queries) // (threads * QUERIES)) * threads, len(queries))
    ends = np.linspace(0, len(queries), count + 1).astype(int)
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
        bank, queries = _unit(pool, bank), _unit(pool, queries)
        search = functools.partial(_search, bank, k=k, block_size=block_size)

        def one(number: int) -> None:
            chunk = slice(ends[number], ends[number + 1])
            similarities[chunk], rows[chunk] = search(queries[chunk], _guess(bank, queries[chunk], k))
            lacking = np.flatnonzero(rows[chunk][:, -1] < 0) + chunk.start
            if len(lacking):
                nothing = np.full(len(lacking), -np.inf, np.float32)
                similarities[lacking], rows[lacking] = search(queries[lacking], nothing)

        for _ in tqdm(in_order(pool, one, range(count), threads), "nearest", count, delay=2, leave=False):
            pass
    return similarities, rows


def _unit(pool: ThreadPoolExecutor, features: Float[np.ndarray, "rows dim"]) -> Float[np.ndarray, "rows dim"]:
    """Rows of length 1."""
    unit = np.empty(features.shape, np.float32)

    def one(start: int) -> None:
        unit[start : start + NORMALIZED] = _normalize(features[start : start + NORMALIZED])

    list(pool.map(one, range(0, len(features), NORMALIZED)))
    return unit


_normalize = jax.jit(normalize)


def _guess(
    bank: Float[np.ndarray, "rows dim"], queries: Float[np.ndarray, "queries dim"], k: int
) -> Float[np.ndarray, " queries"]:
    """Similarities above which at least k rows probably are, and not many more."""
    expected = k * SAMPLE / len(bank)  # of the k nearest in the sample
    rank = math.ceil(expected + 3 * math.sqrt(expected) + 4)
    if len(bank) < 4 * SAMPLE or rank > SAMPLE // 2:
        return np.full(len(queries), -np.inf, np.float32)
    sample = bank[np.linspace(0, len(bank) - 1, SAMPLE).astype(np.int64)]
    similarities = np.partition(queries @ sample.T, SAMPLE - rank, axis=1)[:, SAMPLE - rank]
    return np.nextafter(similarities, np.float32(-np.inf))


def _search(
    bank: Float[np.ndarray, "rows dim"],
    queries: Float[np.ndarray, "queries dim"],
    above: Float[np.ndarray, " queries"],
    *,
    k: int,
    block_size: int,
) -> tuple[Float[np.ndarray, "queries k"], Int[np.ndarray, "queries k"]]:
    """The k nearest among the rows that are more similar than `above`; where there are fewer, -inf and -1."""
    found: list[Candidates] = []
    # Made once: pages of new memory cost a sixth of the time of the products.
    held, higher = (np.empty(len(queries) * min(block_size, len(bank)), kind) for kind in (np.float32, bool))
    for start in range(0, len(bank), block_size):
        block = bank[start : start + block_size]
        similarities = held[: len(queries) * len(block)].reshape(len(queries), len(block))
        np.matmul(queries, block.T, out=similarities)
        mask = np.greater(similarities, above[:, None], out=higher[: similarities.size].reshape(similarities.shape))
        entries = np.flatnonzero(mask)
        query, row = np.divmod(entries, similarities.shape[1])
        found.append(Candidates(query, start + row, similarities.ravel()[entries]))
        if sum(len(part.query) for part in found) > max(CANDIDATES, 2 * k * len(queries)):
            best, rows = _best(found, len(queries), k)
            # A later row that is as similar as the k-th is not nearer, so it need not be looked at.
            above = np.maximum(above, best[:, -1])
            query, place = np.nonzero(rows >= 0)
            found = [Candidates(query, rows[query, place], best[query, place])]
    return _best(found, len(queries), k)


def _best(
    parts: Sequence[Candidates], count: int, k: int
) -> tuple[Float[np.ndarray, "queries k"], Int[np.ndarray, "queries k"]]:
    found = Candidates(*map(np.concatenate, zip(*parts, strict=True)))
    similarities, rows = np.full((count, k), -np.inf, np.float32), np.full((count, k), -1, np.int64)
    by_query = np.argsort(found.query.astype(np.uint16), kind="stable")  # by radix, in a time like that of a copy
    ends = np.cumsum(np.bincount(found.query, minlength=count))
    for query, own in enumerate(np.split(by_query, ends[:-1])):
        nearer = own[np.argsort(-found.similarity[own], kind="stable")[:k]]
        similarities[query, : len(nearer)], rows[query, : len(nearer)] = found.similarity[nearer], found.row[nearer]
    return similarities, rows

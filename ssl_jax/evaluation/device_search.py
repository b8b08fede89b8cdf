"""The rows of a bank that are most similar to queries, on an accelerator: block by block of the bank, by top_k.

host_search.py does the same for CPUs, whose top_k takes several times as long as the products.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from ssl_jax.ops import normalize

# Similarities are computed for this many queries at a time.
QUERIES = 512
# The search first looks only at the most similar row of each GROUP successive rows. If FEW groups suffice, it then
# looks at no more than FEW of them.
GROUP, FEW = 16, 32


def nearest(
    bank: Float[np.ndarray, "rows dim"], queries: Float[np.ndarray, "queries dim"], *, k: int, block_size: int
) -> tuple[Float[np.ndarray, "queries k"], Int[np.ndarray, "queries k"]]:
    """(cosine similarities, rows), see `search.nearest`. k: at most the number of rows."""
    chunks = max(-(-len(queries) // QUERIES), 1)
    size = max(-(-len(queries) // chunks), 1)
    filled = np.zeros((chunks, size, queries.shape[1]), np.float32)  # pads with fewer rows of zeros than chunks
    filled.reshape(chunks * size, queries.shape[1])[: len(queries)] = queries
    normalized = _normalize(jnp.asarray(filled))
    best = jnp.full((chunks, size, k), -jnp.inf), jnp.full((chunks, size, k), -1, jnp.int32)
    for start in range(0, len(bank), block_size):
        best = _merge(best, normalized, jnp.asarray(bank[start : start + block_size]), start)
    similarities, rows = (np.asarray(found).reshape(chunks * size, k)[: len(queries)] for found in best)
    return similarities, rows


_normalize = jax.jit(normalize)


@jax.jit
def _merge(
    best: tuple[Float[Array, "chunks queries k"], Int[Array, "chunks queries k"]],
    queries: Float[Array, "chunks queries dim"],
    block: Float[Array, "rows dim"],
    start: int | Int[Array, ""],
) -> tuple[Float[Array, "chunks queries k"], Int[Array, "chunks queries k"]]:
    """`best`, updated with the rows of a block. The block's first row is row `start` of the bank."""
    block = normalize(block)

    def merge(chunk):
        similarities, rows, queries = chunk
        # highest: TPUs would multiply in bfloat16, whose errors of 1e-2 reorder neighbors.
        new = jnp.matmul(queries, block.T, precision="highest")
        padded = jnp.pad(new, ((0, 0), (0, -len(block) % GROUP)), constant_values=-jnp.inf)
        groups = padded.reshape(len(queries), -1, GROUP)
        largest = jnp.max(groups, axis=2)
        k, found = similarities.shape[1], functools.partial(_among, largest, groups, similarities, rows, start)
        if k <= FEW:
            return found(k)
        # If the bank is in random order, blocks after the first few have few rows nearer than the k nearest so far.
        nearer = jnp.max(jnp.sum(largest > similarities[:, -1:], axis=1))
        return lax.cond(nearer <= FEW, lambda: found(FEW), lambda: found(k))

    return lax.map(merge, (*best, queries))


def _among(
    largest: Float[Array, "queries groups"],
    groups: Float[Array, "queries groups rows"],
    similarities: Float[Array, "queries k"],
    rows: Int[Array, "queries k"],
    start: int | Int[Array, ""],
    count: int,
) -> tuple[Float[Array, "queries k"], Int[Array, "queries k"]]:
    """The nearest among `rows` and the block. At most `count` groups of the block may have a row that belongs there.

    These groups are found by top_k: it takes the `count` largest of the last `count` similarities and the groups'
    largest. The similarities stand in front, as the time of top_k on a CPU grows with how often it finds a larger one.
    """
    _, entries = lax.top_k(jnp.concatenate([similarities[:, -count:], largest], axis=1), count)
    # Sorts the groups into their order again, as top_k prefers the earlier of equals. largest.shape[1] means no group.
    chosen = jnp.sort(jnp.where(entries < count, largest.shape[1], entries - count), axis=1)[:, :, None]
    candidates = jnp.take_along_axis(groups, chosen, axis=1, mode="fill", fill_value=-jnp.inf).reshape(len(rows), -1)
    places = (start + chosen * GROUP + jnp.arange(GROUP)).reshape(len(rows), -1)
    similarities, nearest = lax.top_k(jnp.concatenate([similarities, candidates], axis=1), rows.shape[1])
    return similarities, jnp.take_along_axis(jnp.concatenate([rows, places], axis=1), nearest, axis=1)

"""Weighted k-nearest-neighbor classification of frozen features."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Integer

from ssl_jax.evaluation._checks import check_labeled, check_same_dim
from ssl_jax.ops import check_finite, normalize

# Similarities are computed for this many queries and rows of the bank at a time: 16 MB, which stay in a CPU's cache. At
# dim 256 the matmul is then twice as fast as with 128 queries and 65,536 rows, whose similarities take 32 MB.
QUERIES, ROWS = 512, 8192
# The search first looks only at the most similar row of each GROUP successive rows. If FEW groups suffice, it then
# looks at no more than FEW of them.
GROUP, FEW = 16, 32


def weighted_knn(
    train_features: Float[np.ndarray, "train dim"],
    train_labels: Integer[np.ndarray, "train"],
    test_features: Float[np.ndarray, "test dim"],
    *,
    num_classes: int,
    k: Sequence[int] = (20, 200),
    temperature: float = 0.07,
    block_size: int = ROWS,
) -> dict[int, Int[np.ndarray, "test"]]:
    """Classes of test images by a vote of their nearest training images.

    The k training images with the highest cosine similarity s vote for their class with weight exp(s / temperature).
    The search is exact, in float32. Of equally similar images, the earlier ones count as nearer.

    Args:
      train_features: the bank; any scale. It stays on the host except for one block at a time.
      train_labels: in 0 .. num_classes - 1.
      test_features: any scale.
      num_classes: at least 1.
      k: numbers of neighbors, each at least 1. A number larger than the bank takes the whole bank.
      temperature: > 0.
      block_size: rows of the bank on the device at once.

    Returns: for each of `k` the predicted classes, int32.
    Raises: ValueError for numbers out of range, negative labels, features that are not finite.
    Source: Wu et al. 2018, arXiv:1805.01978, section 3.4; k and temperature as in DINO's code.
    """
    check_labeled("train", train_features, train_labels, num_classes)
    check_finite("test", test_features)
    check_same_dim(train_features, test_features)
    if not k or min(k) < 1 or temperature <= 0 or block_size < 1:
        raise ValueError(f"k {k}, temperature {temperature} and block_size {block_size} must be positive")
    similarities, neighbors = nearest(train_features, test_features, k=max(k), block_size=block_size)
    # Relative to the nearest, so that no temperature overflows. This changes no vote. On the host, in float64.
    weights = np.exp((similarities - similarities[:, :1]).astype(np.float64) / temperature)
    # One bin for each test image and class.
    bins = np.arange(len(test_features))[:, None] * num_classes + train_labels[neighbors]
    predictions = {}
    for count in k:
        votes = np.bincount(bins[:, :count].ravel(), weights[:, :count].ravel(), len(test_features) * num_classes)
        predictions[count] = votes.reshape(-1, num_classes).argmax(axis=1).astype(np.int32)
    return predictions


def nearest(
    bank: Float[np.ndarray, "rows dim"], queries: Float[np.ndarray, "queries dim"], *, k: int, block_size: int = ROWS
) -> tuple[Float[np.ndarray, "queries k"], Int[np.ndarray, "queries k"]]:
    """The min(k, rows) rows of the bank most similar to each query, nearest first: (cosine similarities, rows)."""
    k = min(k, len(bank))
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

"""Weighted k-nearest-neighbor classification of frozen features."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Integer

from ssl_jax.evaluation._checks import check_finite, check_labeled, check_same_dim
from ssl_jax.losses._common import normalize

# Similarities are made for so many queries and rows of the bank at a time: 16 MB, which stay in a CPU's cache. At dim
# 256 the matmul is then twice as fast as with 128 queries and 65,536 rows, whose similarities take 32 MB.
QUERIES, ROWS = 512, 8192
# Of that many rows in succession only the most similar is looked at first.
GROUP = 16


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

    The k training images of highest cosine similarity s vote for their class with weight exp(s / temperature). The
    search is exact, in float32; of equally similar images the earlier are nearer.

    Args:
      train_features: the bank; any scale. It stays on the host but for one block at a time.
      train_labels: in 0 .. num_classes - 1.
      test_features: any scale.
      num_classes: at least 1.
      k: numbers of neighbors, each at least 1; one larger than the bank takes all of it.
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
    # Relative to the nearest, which changes no vote, so that no temperature overflows; on the host, in float64.
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
    normalized = _normalize(jnp.asarray(queries))
    best = jnp.full((len(queries), k), -jnp.inf), jnp.full((len(queries), k), -1)
    for start in range(0, len(bank), block_size):
        best = _merge(best, normalized, jnp.asarray(bank[start : start + block_size]), start)
    return np.asarray(best[0]), np.asarray(best[1])


_normalize = jax.jit(normalize)


@jax.jit
def _merge(
    best: tuple[Float[Array, "queries k"], Int[Array, "queries k"]],
    queries: Float[Array, "queries dim"],
    block: Float[Array, "rows dim"],
    start: int | Int[Array, ""],
) -> tuple[Float[Array, "queries k"], Int[Array, "queries k"]]:
    """`best` after the rows of a block, of which the first is row `start` of the bank."""
    block = normalize(block)
    k = best[0].shape[1]
    group = GROUP if k * GROUP < len(block) else 1

    def merge(one):
        similarities, rows, query = one
        # highest: TPUs would multiply in bfloat16, whose errors of 1e-2 reorder neighbors.
        new = jnp.matmul(query, block.T, precision="highest")
        groups = jnp.pad(new, (0, -len(new) % group), constant_values=-jnp.inf).reshape(-1, group)
        # A new neighbor is in a group whose largest is among the k largest of these and of the neighbors so far. Both
        # top_k and the groups, in order again, prefer the earlier of equals.
        _, entries = lax.top_k(jnp.concatenate([similarities, jnp.max(groups, axis=1)]), k)
        chosen = jnp.sort(jnp.where(entries < k, len(groups), entries - k))  # len(groups): none
        candidates = jnp.take(groups, chosen, axis=0, mode="fill", fill_value=-jnp.inf).ravel()
        places = (start + chosen[:, None] * group + jnp.arange(group)).ravel()
        similarities, nearest = lax.top_k(jnp.concatenate([similarities, candidates]), k)
        return similarities, jnp.concatenate([rows, places])[nearest]

    return lax.map(merge, (*best, queries), batch_size=QUERIES)

"""The rows of a bank of features that are most similar to queries: exact, by cosine, in float32."""

import jax
import numpy as np
from jaxtyping import Float, Int

from ssl_jax.evaluation import device_search, host_search

# Rows of the bank that similarities are computed of at a time. With 512 queries they take 16 MB, which stay in a CPU's
# cache.
ROWS = 8192


def nearest(
    bank: Float[np.ndarray, "rows dim"], queries: Float[np.ndarray, "queries dim"], *, k: int, block_size: int = ROWS
) -> tuple[Float[np.ndarray, "queries k"], Int[np.ndarray, "queries k"]]:
    """The min(k, rows) rows of the bank most similar to each query, nearest first: (cosine similarities, rows).

    Of equally similar rows, the earlier ones count as nearer.

    Args:
      bank, queries: finite, any scale; a row of zeros has the similarity 0 to all.
      k: at least 1.
      block_size: rows of the bank whose similarities are computed at a time. On an accelerator, the rest of the bank
        stays on the host.
    """
    on = host_search if jax.default_backend() == "cpu" else device_search
    return on.nearest(bank, queries, k=min(k, len(bank)), block_size=block_size)

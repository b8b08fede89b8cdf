"""Random numbers of an example that depend on its index in the data set, and not on the rest of the batch."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

# [batch]; or [batch, 2], the low 32 bits and the high ones, in a set of more than 2^31 images: see data/indices.py.
Index = Int[Array | np.ndarray, "batch *words"]


def example_keys(rng: Key[Array, ""], index: Index) -> Key[Array, " batch"]:
    """A key for each example: `rng` with the low word of its index folded in, then the high word if it is not 0.

    So an example below 2^32 has the same key whether its set needs one word or two.
    """

    def one(i: Int[Array | np.ndarray, ""]) -> Key[Array, ""]:
        return jax.random.fold_in(rng, i)

    if index.ndim == 1:
        return jax.vmap(one)(index)
    low, high = jax.vmap(one)(index[:, 0]), index[:, 1]
    return jnp.where(high == 0, low, jax.vmap(jax.random.fold_in)(low, high))

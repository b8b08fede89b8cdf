"""Stochastic depth: in training, each image skips some branches of some blocks.

Source: Huang et al. 2016, arXiv:1603.09382.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key


def growing(drop_path: float, blocks: int) -> list[float]:
    """Probability of each block that an image skips a branch: a line from 0 to drop_path at the last block."""
    return [drop_path * i / max(blocks - 1, 1) for i in range(blocks)]


def row_keys(rng: Key[Array, ""], batch: int, axis_name: str | None) -> Key[Array, " batch"]:
    """A key for each row of a device, by its place in the global batch: results do not depend on the devices' number.

    batch, axis_name: as in `draw`.
    """
    first = 0 if axis_name is None else lax.axis_index(axis_name) * batch
    return jax.vmap(jax.random.fold_in, (None, 0))(rng, first + jnp.arange(batch))


def draw(
    rng: Key[Array, ""], batch: int, blocks: int, branches: int, axis_name: str | None
) -> Float[Array, "batch blocks branches"]:
    """Uniform numbers in [0, 1), one for each image, block and branch.

    batch: images of this device. axis_name: mapped axis that the batch is sharded over; None if it is the whole batch.
    """
    keys = row_keys(rng, batch, axis_name)

    def of_block(key, number):
        return jax.vmap(jax.random.uniform)(jax.random.split(jax.random.fold_in(key, number), branches))

    return jax.vmap(jax.vmap(of_block, (None, 0)), (0, None))(keys, jnp.arange(blocks))


def factors(
    noise: Float[Array, "batch blocks branches"], rates: Sequence[float]
) -> list[Float[Array, "batch branches"]]:
    """For each block, what its branches are multiplied by: 0, or the number that makes the factors' mean 1.

    noise: of `draw`. rates: for each block, the probability in [0, 1) that an image skips a branch.
    """
    keep = 1.0 - jnp.asarray(rates)[:, None]
    return list(jnp.where(noise < keep, 1.0 / keep, 0.0).swapaxes(0, 1))

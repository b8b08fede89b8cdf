"""Stochastic depth: in training, each image skips some branches of some blocks.

Source: Huang et al. 2016, arXiv:1603.09382.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key


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


def kept(
    noise: Float[Array, "batch blocks branches"], rates: Sequence[float], group: int
) -> list[Int[Array, "groups branches kept"] | None]:
    """For each block, the images of each group that keep its branches, in ascending order; None: all do.

    As in DINOv2 (arXiv:2304.07193, section 5): a fixed number of images is left out, so that nothing is computed for
    them. group: images in a row that are drawn from together; it divides the batch. noise, rates: as in `factors`.
    """
    batch, blocks, branches = noise.shape
    noise = noise.reshape(batch // group, group, blocks, branches)
    order = jnp.argsort(jnp.moveaxis(noise, 1, -1), axis=-1)
    counts = [count_kept(group, rate) for rate in rates]
    return [None if n == group else jnp.sort(order[:, i, :, :n], axis=-1) for i, n in enumerate(counts)]


def count_kept(group: int, rate: float) -> int:
    """How many images of a group keep a branch that is dropped at this rate: DINOv2's count, at least 1."""
    return max(math.floor(group * (1.0 - rate) + 1e-6), 1)

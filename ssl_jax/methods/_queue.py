"""Memories of past embeddings that several methods keep in their state: a ring queue, and a bank of all images.

Their rows have unit norm, are float32, the same on every device, and carry no gradient.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

from ssl_jax.losses import _common

# {"rows": [size, dim], "pointer": int32 scalar, the row that is overwritten next, which is the oldest}
Queue = dict[str, Array]


def create(rng: PRNGKeyArray, size: int, dim: int) -> Queue:
    """A queue of `size` random directions."""
    return {"rows": create_bank(rng, size, dim), "pointer": jnp.zeros((), jnp.int32)}


def push(queue: Queue, rows: Float[Array, "batch dim"], axis_name: str | None) -> Queue:
    """The queue after the rows of all devices, normalized, have overwritten its oldest ones.

    Queries are to be compared with the queue as it was before: it must not hold the keys of their own batch.

    Raises: ValueError if the queue's size is no multiple of the rows of all devices.
    """
    size, count = len(queue["rows"]), _common.num_rows(rows, axis_name)
    if size % count:
        nearest_size = max(1, round(size / count)) * count
        raise ValueError(f"a queue of {size} rows is not filled evenly by batches of {count}; use {nearest_size}")
    new_rows = gather(_common.normalize(rows), axis_name)
    return {
        "rows": lax.dynamic_update_slice_in_dim(queue["rows"], new_rows, queue["pointer"], axis=0),
        "pointer": (queue["pointer"] + count) % size,
    }


def nearest(z: Float[Array, "batch dim"], rows: Float[Array, "size dim"]) -> Float[Array, "batch dim"]:
    """For each row of `z` the one of a queue's or bank's `rows` with the largest cosine to it."""
    z, rows = lax.stop_gradient((z.astype(jnp.float32), rows))
    return rows[jnp.argmax(jnp.matmul(z, rows.T, precision="highest"), axis=-1)]


def create_bank(rng: PRNGKeyArray, num_images: int, dim: int) -> Float[Array, "num_images dim"]:
    """A random direction for each image."""
    return _common.normalize(jax.random.normal(rng, (num_images, dim)))


def update_bank(
    bank: Float[Array, "num_images dim"],
    index: Int[Array, "batch"],
    rows: Float[Array, "batch dim"],
    axis_name: str | None,
    *,
    momentum: float = 0.5,
) -> Float[Array, "num_images dim"]:
    """The bank with the images `index` of all devices moved: normalized momentum * old + (1 - momentum) * new row.

    The new row is normalized first. Where an image is several times in the batch, its first row counts.
    Source: Wu et al. 2018, arXiv:1805.01978, section 3.2; momentum 0.5 in the authors' code.
    """
    index, rows = gather(index, axis_name), gather(_common.normalize(rows), axis_name)
    moved = _common.normalize(momentum * bank[index] + (1.0 - momentum) * rows)
    # Of equal indices JAX leaves open which one is written. The same row for all of them leaves nothing open.
    first = jnp.full(len(bank), len(index)).at[index].min(jnp.arange(len(index)))
    return bank.at[index].set(moved[first[index]])


def gather(x: Shaped[Array, "batch ..."], axis_name: str | None) -> Shaped[Array, "global_batch ..."]:
    """The rows of all devices, known to be the same on each, as a state must be."""
    x = lax.stop_gradient(x)
    return x if axis_name is None else lax.all_gather(x, axis_name, tiled=True, to="invarying")

"""Memories of past embeddings that methods keep in their state: a ring queue, and a bank with a row for each image.

Their rows have unit length, those of `create_features` any. They are float32, are the same on every device and carry
no gradient.
"""

# pyright: reportUnknownMemberType=false

from collections.abc import Mapping
from typing import cast

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key, Shaped

from ssl_jax import ops
from ssl_jax.methods.contract import Schedule, Traffic
from ssl_jax.methods.toolkit import banks
from ssl_jax.methods.toolkit.banks import Bank
from ssl_jax.methods.toolkit.rows import row_bytes

PADDED_FROM = 65_536  # images; ImageNet's 1,281,167 are divisible by no power of 2
ROWS_MULTIPLE = 1024
MOST_ROWS = 2**31 - ROWS_MULTIPLE  # that 32 bits can index

# {"rows": [size, dim], "pointer": int32 scalar, the oldest row, which is overwritten next}
Queue = Mapping[str, Array]
# {"rows": [rows, dim], any scale, "seen": [rows], whether the image's row was ever set}
Features = Mapping[str, Bank]


def create(rng: Key[Array, ""], size: int, dim: int) -> Queue:
    """A queue of `size` random directions."""
    return {"rows": directions(rng, size, dim), "pointer": jnp.zeros((), jnp.int32)}


def push(queue: Queue, rows: Float[Array, "batch dim"], axis_name: str | None) -> Queue:
    """Overwrites the queue's oldest rows with the normalized rows of all devices -> the new queue.

    Where the queue holds negatives, compare queries with it before this: it must not hold the keys of their own batch.

    Raises: ValueError if the queue's size is no multiple of the rows of all devices.
    """
    size, count = len(queue["rows"]), ops.num_rows(rows, axis_name)
    if size % count:
        nearest_size = max(1, round(size / count)) * count
        raise ValueError(f"a queue of {size} rows is not filled evenly by batches of {count}; use {nearest_size}")
    new_rows = gather(ops.normalize(rows), axis_name)
    return {
        "rows": lax.dynamic_update_slice_in_dim(queue["rows"], new_rows, queue["pointer"], axis=0),
        "pointer": (queue["pointer"] + count) % size,
    }


def nearest(z: Float[Array, "batch dim"], rows: Float[Array, "size dim"]) -> Float[Array, "batch dim"]:
    """For each row of `z` the one of a queue's or bank's `rows` with the largest cosine to it."""
    z, rows = lax.stop_gradient((z.astype(jnp.float32), rows))
    return rows[jnp.argmax(jnp.matmul(z, rows.T, precision="highest"), axis=-1)]


def several_nearest(
    z: Float[Array, "batch dim"], rows: Float[Array, "size dim"], count: int
) -> Float[Array, "batch {count} dim"]:
    """As `nearest`, but the `count` nearest ones, the nearest first."""
    z, rows = lax.stop_gradient((z.astype(jnp.float32), rows))
    return rows[lax.top_k(jnp.matmul(z, rows.T, precision="highest"), count)[1]]


def directions(rng: Key[Array, ""], count: int, dim: int) -> Float[Array, "{count} dim"]:
    """Random directions."""
    return ops.normalize(jax.random.normal(rng, (count, dim)))


def bank_rows(num_images: int) -> int:
    """Rows of what is kept of each image, such that a large one can be sharded over any number of devices that divides
    `ROWS_MULTIPLE`: no image has the last rows, which stay as they are.

    Raises: ValueError for more images than rows of an array can be indexed with 32 bits.
    """
    if num_images > MOST_ROWS:
        raise ValueError(
            f"this method keeps a row of each image, of at most {MOST_ROWS:,}, and the set has {num_images:,}; "
            "use a method without such a memory, for example dino or mae"
        )
    return num_images if num_images < PADDED_FROM else -(-num_images // ROWS_MULTIPLE) * ROWS_MULTIPLE


def named(schedule: Schedule, *entries: str) -> Mapping[str, int]:
    """For `Method.banks`: these entries of the state have a row for each image."""
    return dict.fromkeys(entries, bank_rows(schedule.num_images))


def create_bank(rng: Key[Array, ""], num_images: int, dim: int) -> Float[Array, "rows dim"]:
    """A random direction for each image, and zeros in the rows that no image has; see `bank_rows`."""
    free = bank_rows(num_images) - num_images
    return jnp.pad(directions(rng, num_images, dim), ((0, free), (0, 0)))


def update_bank(
    bank: Bank,
    index: Int[Array, " batch"],
    rows: Float[Array, "batch dim"],
    axis_name: str | None,
    *,
    momentum: float = 0.5,
) -> Bank:
    """Moves the rows of the images `index` of all devices -> the new bank [rows, dim].

    A row becomes momentum * its old value + (1 - momentum) * the normalized new row, normalized again. Where an image
    is several times in the batch, its first row counts.

    Source: Wu et al. 2018, arXiv:1805.01978, section 3.2; momentum 0.5 in the authors' code.
    """
    index, rows = gather(index, axis_name), gather(ops.normalize(rows), axis_name)
    old = banks.own(bank).at[banks.places(bank, index)].get(mode="clip")  # no matter what where another has the row
    return _write(bank, index, ops.normalize(momentum * old + (1.0 - momentum) * rows))


def _write(bank: Bank, index: Int[Array, " rows"], rows: Float[Array, "rows dim"]) -> Bank:
    # Where several rows have one index, JAX does not say which one it writes. So all of them get the first row.
    places = banks.places(bank, index)
    first = jnp.full(len(banks.own(bank)), len(index)).at[places].min(jnp.arange(len(index)), mode="drop")
    return banks.put(bank, index, rows.at[first.at[places].get(mode="clip")].get(mode="clip"))


def create_features(num_images: int, dim: int) -> Features:
    """Rows of zeros, and no image seen."""
    rows = bank_rows(num_images)
    return {"rows": jnp.zeros((rows, dim)), "seen": jnp.zeros(rows, bool)}


def keep_features(
    features: Features, index: Int[Array, " batch"], rows: Float[Array, "batch dim"], axis_name: str | None
) -> Features:
    """The features after `rows`, as they are, have replaced those of the images `index` of all devices."""
    index, rows = gather(index, axis_name), gather(rows.astype(jnp.float32), axis_name)
    return {"rows": _write(features["rows"], index, rows), "seen": mark_seen(features["seen"], index)}


def mark_seen(seen: Bank, index: Int[Array, " rows"]) -> Bank:
    """`seen` [rows], with True for these images, which are the same on every device."""
    return banks.put(seen, index, jnp.ones(len(index), bool))


def check_clusters(schedule: Schedule, clusters: int) -> None:
    """Raises: ValueError for more clusters than images."""
    if clusters > schedule.num_images:
        raise ValueError(f"clusters={clusters} must be from 2 to the number of images, {schedule.num_images}")


def feature_traffic(schedule: Schedule, dim: int) -> Traffic:
    """Of a step with one pass of the student, which gathers each image's features and index for `keep_features`."""
    return Traffic(passes=1, gathered=row_bytes(schedule.batch_size, dim) + row_bytes(schedule.batch_size))


def gather(x: Shaped[Array, "batch ..."], axis_name: str | None) -> Shaped[Array, "global_batch ..."]:
    """The rows of all devices, without gradient.

    They are gathered as invarying: a state has to be the same on every device, and check_vma must see that it is.
    """
    x = lax.stop_gradient(x)
    return x if axis_name is None else cast(Array, lax.all_gather(x, axis_name, tiled=True, to="invarying"))

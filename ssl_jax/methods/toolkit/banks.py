"""Rows of a bank, of which every device has all or, where the state is sharded, its own.

A bank is an array of the state with a row for each image of the data set, along one axis. A method names its banks in
`Method.banks`; in a step with a sharded state it gets a `Shard` in place of each. An index is that of an image in the
data set, whichever device has its row.
"""

# pyright: reportUnknownMemberType=false

from collections.abc import Sequence
from typing import cast

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Shaped

from ssl_jax.ops import shards
from ssl_jax.ops.collectives import all_rows, global_sum

Bank = Array | shards.Shard

TABLE = 2**24  # numbers: the most scores that a device computes at a time, 64 MiB


def own(bank: Bank) -> Array:
    """The rows that this device has: its own, or all."""
    return bank.value if isinstance(bank, shards.Shard) else bank


def like(bank: Bank, rows: Array) -> Bank:
    """A bank whose rows are divided as those of `bank`. rows: those that this device has."""
    return bank.replace(value=rows) if isinstance(bank, shards.Shard) else rows


def split(bank: Bank) -> list[Bank]:
    """The banks that are stacked along the first axis."""
    if isinstance(bank, shards.Shard):
        return [bank.replace(value=rows, axis=bank.axis - 1) for rows in bank.value]
    return list(bank)


def stack(parts: Sequence[Bank]) -> Bank:
    """The banks along a new first axis."""
    stacked = jnp.stack([own(part) for part in parts])
    first = parts[0]
    return first.replace(value=stacked, axis=first.axis + 1) if isinstance(first, shards.Shard) else stacked


def first_own(bank: Bank) -> int | Array:
    """The index of the first row that this device has."""
    if not isinstance(bank, shards.Shard):
        return 0
    return lax.axis_index(bank.route.axis_name) * bank.value.shape[bank.axis]


def places(bank: Bank, index: Int[Array, "*shape"]) -> Int[Array, "*shape"]:
    """Where the rows are among those that this device has; behind the last one where another device has the row."""
    if not isinstance(bank, shards.Shard):
        return index
    count = bank.value.shape[bank.axis]
    place = index - first_own(bank)
    return jnp.where((place >= 0) & (place < count), place, count)


def take(bank: Bank, index: Int[Array, " batch"], *, axis: int = 0) -> Shaped[Array, "..."]:
    """The rows of this device's images, which lie along `axis`. Without gradient."""
    rows = lax.stop_gradient(own(bank))
    if not isinstance(bank, shards.Shard):
        return rows[(slice(None),) * axis + (index,)]
    asked = places(bank, all_rows(index, bank.route.axis_name))
    found = jnp.take(rows, asked, axis=axis, mode="fill", fill_value=0)
    return shards.sum_and_shard(found, axis, bank.route)  # one of the devices has the row, all others add 0


def rows_of_all(
    rows: Shaped[Array, "rows ..."], index: Int[Array, " count"], axis_name: str
) -> Shaped[Array, "count ..."]:
    """Of the `rows` of all devices those with these numbers, which are the same on every device, as is the result."""
    place = index - lax.axis_index(axis_name) * len(rows)
    here = (place >= 0) & (place < len(rows))
    found = jnp.take(rows, jnp.where(here, place, len(rows)), axis=0, mode="fill", fill_value=0)
    return global_sum(found, axis_name)


def put(bank: Bank, index: Int[Array, " rows"], rows: Shaped[Array, "..."], *, axis: int = 0) -> Bank:
    """The bank with these rows of the images `index` of all devices, the same on each. The rows lie along `axis`."""
    at = own(bank).at[(slice(None),) * axis + (places(bank, index),)]
    return like(bank, at.set(rows, mode="drop"))


def scores(
    z: Float[Array, "batch dim"], bank: shards.Shard, index: Int[Array, "global_batch count"]
) -> Float[Array, "batch count"]:
    """Scalar products of this device's rows `z` with rows of a divided bank, with gradient to `z`.

    Each device computes those of all devices' `z` with its own rows of the bank: so rows of the bank are not sent.

    index: for the images of all devices, the same on each.
    """
    rows = lax.stop_gradient(bank.value)

    def of_image(image: tuple[Array, Array]) -> Float[Array, " count"]:
        z, place = image
        found = jnp.matmul(rows, z, precision="highest")
        return jnp.take(found, place, mode="fill", fill_value=0.0)

    everyone = all_rows(z, bank.route.axis_name)
    together = min(max(1, TABLE // len(rows)), len(everyone))
    # Without the checkpoint, the backward pass would keep what is computed in blocks.
    found = cast(Array, lax.map(jax.checkpoint(of_image), (everyone, places(bank, index)), batch_size=together))
    return shards.sum_and_shard(found, 0, bank.route)

"""Rows of a batch that the devices share."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Num, Shaped

from ssl_jax.ops.collectives import all_rows, mean_where


def neighbors(rows: Num[Array, "batch ..."]) -> Num[Array, "batch ..."]:
    """Rows 1, 0, 3, 2, ...: for each row that of another image.

    A row and its neighbor are on one device, and are the same pair on any number of devices.

    Raises: ValueError for an odd number of rows.
    """
    if len(rows) % 2:
        raise ValueError(
            f"this method pairs the images on a device, and a device has {len(rows)} of them; use an "
            "even number for each device"
        )
    return rows.reshape(-1, 2, *rows.shape[1:])[:, ::-1].reshape(rows.shape)


def accuracy(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], axis_name: str | None
) -> Float[Array, ""]:
    """The share of right answers: rows whose largest logit is that of their class. Rows with label -1 do not count."""
    right = jnp.argmax(logits, axis=-1) == labels
    return mean_where(right.astype(jnp.float32), labels >= 0, axis_name)


def take_rows(
    x: Shaped[Array, "batch ..."], order: Int[Array, " global_batch"], axis_name: str | None
) -> Shaped[Array, "batch ..."]:
    """This device's rows of the global batch once that is in the given order."""
    if axis_name is None:
        return x[order]
    mine = lax.dynamic_slice_in_dim(order, lax.axis_index(axis_name) * len(x), len(x))
    return all_rows(x, axis_name)[mine]


def row_bytes(batch_size: int, dim: int = 1) -> int:
    """Bytes of `dim` numbers, of 4 bytes each, for each image of the global batch: for `Method.traffic`."""
    return 4 * batch_size * dim

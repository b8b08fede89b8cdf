"""The index of an image in its data set: int64 on the host, 32 bits or two times 32 bits on the device.

JAX has integers of 32 bits. In a set of up to ONE_WORD images the device has an index as int32. In a larger one it has
two such words, the low 32 bits and the high ones. `ops.example_keys` makes random numbers of either.
"""

import numpy as np
from jaxtyping import Int, Int32, Int64

ONE_WORD = 2**31  # images


def device_shape(rows: int, num_images: int) -> tuple[int, ...]:
    """The shape on the device of the indices of `rows` images of a set."""
    return (rows,) if num_images <= ONE_WORD else (rows, 2)


def for_device(index: Int[np.ndarray, " batch"], num_images: int) -> Int32[np.ndarray, "batch *words"]:
    """The indices as the device has them. `num_images`: of the set, which alone decides the shape."""
    if num_images <= ONE_WORD:
        return index.astype(np.int32)
    return np.stack([index & 0xFFFFFFFF, index >> 32], axis=-1).astype(np.uint32).view(np.int32)


def on_host(index: Int[np.ndarray, "batch *words"]) -> Int64[np.ndarray, " batch"]:
    """The indices that `for_device` was given."""
    if index.ndim == 1:
        return index.astype(np.int64)
    low, high = np.moveaxis(index.astype(np.int64), -1, 0)
    return (high << 32) | (low & 0xFFFFFFFF)

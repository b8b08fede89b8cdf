"""Networks that see only some squares of each image. What is hidden is 0 in every map, and counts in no statistic.

A convolution of such a map whose result is hidden again is a sparse convolution: at each visible position it sums over
the visible positions within reach (Graham & van der Maaten 2017, arXiv:1706.01307, submanifold convolutions). So no
sparse kernels are needed. ConvNeXt V2 (arXiv:2301.00808) and SparK (arXiv:2301.03580) compute it in this way.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ssl_jax.models.positions import patch_grid


def hide(
    x: Float[Array, "batch *positions dim"], hidden: Bool[Array, "batch *positions"] | None
) -> Float[Array, "batch *positions dim"]:
    """x with zeros where `hidden` is True; x itself where it is None."""
    return x if hidden is None else jnp.where(hidden[..., None], 0.0, x)


def squares(
    mask: Bool[Array, "batch places"], size: tuple[int, int], side: int
) -> Bool[Array, "batch square_rows square_columns"]:
    """The mask, row by row over squares of `side` pixels, as a map of the squares of images of size (height, width).

    Raises: ValueError if squares do not fill the images.
    """
    return mask.reshape(-1, *patch_grid(size, side))


def at_size(
    hidden: Bool[Array, "batch square_rows square_columns"], size: tuple[int, ...]
) -> Bool[Array, "batch rows columns"]:
    """Which positions of a map of size (rows, columns), multiples of the squares' numbers, lie in hidden squares."""
    for axis, side in enumerate(size, start=1):
        hidden = jnp.repeat(hidden, side // hidden.shape[axis], axis=axis)
    return hidden

"""Where the positions of views' feature maps lie in the image, by the views' boxes."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def map_positions(
    boxes: Float[Array, "batch 6"], grid: tuple[int, int], aspect: float = 1.0
) -> Float[Array, "batch positions 2"]:
    """Where the middle of each position of a view's feature map lies in the image: (row, column), shares of its sides.

    boxes: of the views, see `Batch`.
    grid: (rows, columns) of the map. Its positions come row by row.
    aspect: width / height of the view in pixels.
    """
    top, left, height, width, mirrored, degrees = boxes.T[..., None, None]  # [batch, 1, 1] each
    down, across = ((jnp.arange(size) + 0.5) / size - 0.5 for size in grid)  # from the view's middle
    down, across = down[:, None], across[None, :]
    # The view was mirrored first, then turned.
    sine, cosine = jnp.sin(jnp.radians(degrees)), jnp.cos(jnp.radians(degrees))
    rows = cosine * down + sine * aspect * across
    columns = cosine * across - sine / aspect * down
    columns = jnp.where(mirrored > 0.5, -columns, columns)
    both = top + height * (rows + 0.5), left + width * (columns + 0.5)
    return jnp.stack(both, axis=-1).reshape(len(boxes), -1, 2)


def near_positions(
    boxes: tuple[Float[Array, "batch 6"], Float[Array, "batch 6"]],
    grids: tuple[tuple[int, int], tuple[int, int]],
    aspects: tuple[float, float],
    ratio: float,
) -> Bool[Array, "batch positions1 positions2"]:
    """Which positions of the first view's map and of the second view's lie near to each other in the image.

    boxes, grids, aspects: of the two views, see `map_positions`. Two positions are near if their middles are less than
    `ratio` diagonals of a cell apart. Of the two maps' cells the larger diagonal counts. All are in shares of the
    image's sides.

    Source: Xie et al. 2020, arXiv:2011.10043, section 3.1, as in the authors' code.
    """
    first, second = (map_positions(*of) for of in zip(boxes, grids, aspects, strict=True))
    distances = jnp.sqrt(jnp.sum((first[:, :, None] - second[:, None]) ** 2, axis=-1))
    diagonals = [jnp.hypot(b[:, 2] / rows, b[:, 3] / columns) for b, (rows, columns) in zip(boxes, grids, strict=True)]
    return distances < ratio * jnp.maximum(*diagonals)[:, None, None]

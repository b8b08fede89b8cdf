"""Positions of a vision transformer's patches: their grid; fixed, resized and relative positions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

# (sines, cosines) of the angles by which the dimensions of a head are rotated, for each image or for all of them. The
# angles of tokens that are no patches are 0.
Rope = tuple[Float[Array, "#batch tokens head_dim"], Float[Array, "#batch tokens head_dim"]]


class RelativePositions(nn.Module):
    """() -> bias of attention's logits [1, heads, tokens, tokens]: one number for each head and offset."""

    heads: int
    grid: tuple[int, int]
    class_token: bool

    @nn.compact
    def __call__(self):
        index = relative_index(self.grid, self.class_token)
        shape = (int(index.max()) + 1, self.heads)
        # Starts at 0, as in BEiT's code where all blocks share the table.
        table = self.param("relative_position_bias_table", nn.initializers.zeros, shape, jnp.float32)
        return table[index].transpose(2, 0, 1)[None]


def patch_grid(size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Patches (down, across) of an image of `size` (height, width). Raises: ValueError if they do not fill it."""
    if patch_size < 1 or any(side < patch_size or side % patch_size for side in size):
        raise ValueError(
            f"an image of {size[0]}x{size[1]} pixels does not divide into patches of {patch_size}; "
            "choose another model.patch_size or image size"
        )
    return size[0] // patch_size, size[1] // patch_size


def sincos_positions(grid: tuple[int, int], dim: int) -> Float[Array, "1 patches dim"]:
    """Fixed positions: sines and cosines of the column in the first half of `dim`, of the row in the second.

    Source: MAE's code (He et al. 2021, arXiv:2111.06377, util/pos_embed.py); wavelengths 2 pi to 20,000 pi.
    """
    row, column = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    frequency = 10000.0 ** -(np.arange(dim // 4) / (dim // 4))
    angles = [np.outer(coordinate, frequency) for coordinate in (column.ravel(), row.ravel())]
    waves = np.concatenate([wave(angle) for angle in angles for wave in (np.sin, np.cos)], axis=1)
    return jnp.asarray(waves[None], jnp.float32)


def rope_rotations(
    grid: tuple[int, int], head_dim: int, *, base: float, prefix: int = 0, scale: float | Float[Array, ""] = 1.0
) -> Rope:
    """Rotations of a head's queries and keys by the place of their patch, after `prefix` tokens that are not rotated.

    A patch's place is that of its middle, from -1 at one edge of the image to 1 at the other, times `scale`. Its row
    turns the first quarter of the dimensions against the third, its column the second against the fourth. The periods
    are base ** (i / n), for i in 0 .. n - 1 with n = head_dim / 4.

    Source: Simeoni et al. 2025, DINOv3, arXiv:2508.10104, section 3.2 (`scale` is its jitter), and the authors' code.
    """
    periods = base ** (np.arange(head_dim // 4) / (head_dim // 4))
    places = np.meshgrid(*(2.0 * (np.arange(n) + 0.5) / n - 1.0 for n in grid), indexing="ij")
    angles = np.concatenate([np.outer(place.ravel(), 2.0 * np.pi / periods) for place in places], axis=1)
    angles = np.pad(np.tile(angles, 2), ((prefix, 0), (0, 0)))[None]
    angles = scale * jnp.asarray(angles, jnp.float32)
    return jnp.sin(angles), jnp.cos(angles)


def rotate(x: Float[Array, "batch tokens heads head_dim"], rope: Rope) -> Float[Array, "batch tokens heads head_dim"]:
    """Queries or keys, rotated: the first half of a head's dimensions are turned against its second half."""
    sines, cosines = (part[:, :, None] for part in rope)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return (x * cosines + turned * sines).astype(x.dtype)


def relative_index(grid: tuple[int, int], class_token: bool) -> np.ndarray:
    """int [tokens, tokens]: for a query (first axis) and a key (second), their row in a table of relative positions.

    The first (2 height - 1) (2 width - 1) rows of the table are for patches. They are ordered by the query's row less
    the key's, then by the query's column less the key's. With a class token, three rows follow: from the class token to
    a patch, from a patch to the class token, from the class token to itself.

    Source: Bao et al. 2021, arXiv:2106.08254, the authors' code.
    """
    height, width = grid
    places = np.indices(grid).reshape(2, -1)
    down, across = places[:, :, None] - places[:, None, :] + np.array([height - 1, width - 1])[:, None, None]
    index = down * (2 * width - 1) + across
    if not class_token:
        return index
    index, count = np.pad(index, ((1, 0), (1, 0))), (2 * height - 1) * (2 * width - 1)
    index[0], index[:, 0], index[0, 0] = count, count + 1, count + 2
    return index


def resize_positions(
    positions: Float[Array, "height width dim"], grid: tuple[int, int]
) -> Float[Array, "new_height new_width dim"]:
    """Resizes positions to another grid: bicubic, antialiased, as timm's resample_abs_pos_embed."""
    return jax.image.resize(positions, (*grid, positions.shape[-1]), "bicubic", precision=lax.Precision.HIGHEST)

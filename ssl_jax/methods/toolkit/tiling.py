"""Tiles: square pieces of images, cut on the device, row by row of a grid: [batch, tiles, side, side, channels].

What an image becomes depends on `rng` and the image's index alone, and not on the other images of the batch.
"""

# pyright: reportUnknownMemberType=false

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key, Shaped

from ssl_jax import ops

Images = Float[Array, "batch height width channels"]
Tiles = Float[Array, "batch tiles side side channels"]


def cut(rng: Key[Array, ""], index: ops.Index, images: Images, *, grid: int, side: int, gap: int = 0) -> Tiles:
    """Cuts one tile from a random place of each cell. The grid x grid equal cells lie in the middle of the image.

    gap: neighboring tiles are apart by at least so many pixels.

    Raises: ValueError if the cells are too small for the tiles.
    """
    check_cells(images.shape[1:3], grid=grid, side=side, gap=gap)
    cells = [size // grid for size in images.shape[1:3]]
    margins = [(size - grid * cell) // 2 for size, cell in zip(images.shape[1:3], cells, strict=True)]
    numbers = jnp.stack(jnp.divmod(jnp.arange(grid**2), grid), axis=1)  # row and column of each cell
    corners = jnp.array(margins) + numbers * jnp.array(cells)
    room = jnp.array([cell - gap - side + 1 for cell in cells])
    return take(images, corners + offsets(rng, index, (grid**2, 2), room), side)


def check_cells(size: Sequence[int], *, grid: int, side: int, gap: int = 0) -> None:
    """Raises: ValueError for images of this (height, width) if their cells are too small for the tiles of `cut`."""
    if min(size) // grid < side + gap:
        raise ValueError(
            f"a grid of {grid}x{grid} cells in {size[0]}x{size[1]} pixels has no room for tiles of {side} pixels "
            f"{gap} apart; use views of {grid * (side + gap)} pixels or smaller tiles"
        )


def overlapping(images: Images, *, grid: int, side: int) -> Tiles:
    """Cuts grid x grid equally spaced tiles that fill the image. Tiles that are larger than their spacing overlap.

    Raises: ValueError if the image's sides allow no equal spacing.
    """
    places: list[Array] = []
    for size in images.shape[1:3]:
        step, rest = divmod(size - side, max(grid - 1, 1))
        if rest or size < side or step < 1:
            raise ValueError(
                f"{grid} patches of {side} pixels cannot be equally spaced over {size}; use views of "
                f"{side + max(step, 1) * (grid - 1)} pixels"
            )
        places.append(step * jnp.arange(grid))
    corners = jnp.stack(jnp.meshgrid(*places, indexing="ij"), axis=-1).reshape(-1, 2)
    return take(images, jnp.broadcast_to(corners, (len(images), *corners.shape)), side)


def shuffle(rng: Key[Array, ""], index: ops.Index, tiles: Tiles) -> Tiles:
    """Puts the tiles of each image in a random order of its own."""
    return jax.vmap(jax.random.permutation)(image_keys(rng, index), tiles)


def normalize(tiles: Tiles) -> Tiles:
    """Each tile minus its mean, divided by its standard deviation, over all its pixels and channels.

    A tile whose pixels are all alike becomes 0.
    """
    tiles = tiles - jnp.mean(tiles, axis=(2, 3, 4), keepdims=True)
    return tiles * lax.rsqrt(jnp.mean(tiles**2, axis=(2, 3, 4), keepdims=True) + 1e-6)


def shift_channels(rng: Key[Array, ""], index: ops.Index, images: Images, most: int) -> Images:
    """Moves each channel of each image by -most .. most pixels down and across, and repeats its border pixels."""
    channels = images.shape[-1]
    starts = offsets(rng, index, (channels, 2), 2 * most + 1)
    padded = jnp.pad(images, ((0, 0), (most, most), (most, most), (0, 0)), mode="edge")

    def one(
        channel: Float[Array, "padded_height padded_width"], start: Int[Array, "2"]
    ) -> Float[Array, "height width"]:
        return lax.dynamic_slice(channel, start, images.shape[1:3])

    return jax.vmap(jax.vmap(one, (2, 0), 2))(padded, starts)


def keep_one_channel(rng: Key[Array, ""], index: ops.Index, tiles: Tiles, share: float) -> Tiles:
    """Keeps one random channel of a random `share` of the tiles, around 0; their other channels become noise around 0.

    The noise has a hundredth of the standard deviation of the channel that is kept.

    Source: Doersch, Gupta & Efros 2015, arXiv:1505.05192, section 3.1.
    """
    rng_share, rng_channel, rng_noise = jax.random.split(rng, 3)
    count, side, _, channels = tiles.shape[1:]
    kept = offsets(rng_channel, index, (count, 1, 1, 1), channels)
    keys = image_keys(rng_noise, index)
    noise = jax.vmap(functools.partial(jax.random.normal, shape=(count, side, side, channels)))(keys)
    channel = jnp.take_along_axis(tiles, kept, axis=4)
    channel = channel - jnp.mean(channel, axis=(2, 3), keepdims=True)
    noise *= 0.01 * jnp.std(channel, axis=(2, 3), keepdims=True)
    changed = uniform(rng_share, index, (count, 1, 1, 1)) < share
    return jnp.where(changed, jnp.where(kept == jnp.arange(channels), channel, noise), tiles)


def pixelate(rng: Key[Array, ""], index: ops.Index, tiles: Tiles, share: float) -> Tiles:
    """Makes a random `share` of the tiles coarser: each consists of fewer pixels, by nearest neighbors.

    The number of pixels is drawn uniformly. It is at least a hundredth of the tile's.

    Source: Doersch, Gupta & Efros 2015, arXiv:1505.05192, section 3.1: 100 to 95^2 pixels of 96^2.
    """
    rng_share, rng_size = jax.random.split(rng)
    count, side = tiles.shape[1:3]
    area = uniform(rng_size, index, (count, 1))
    cells = jnp.maximum(jnp.round(side * jnp.sqrt(0.01 + 0.97 * area)), 1.0)  # coarse pixels along each side
    cells = jnp.where(uniform(rng_share, index, (count, 1)) < share, cells, float(side))
    # Each pixel becomes the one in the middle of the coarse pixel that it lies in.
    cell = jnp.floor((jnp.arange(side) + 0.5) * cells / side)
    source = jnp.clip(jnp.floor((cell + 0.5) * side / cells), 0, side - 1).astype(jnp.int32)  # [batch, tiles, side]
    tiles = jnp.take_along_axis(tiles, source[:, :, :, None, None], axis=2)
    return jnp.take_along_axis(tiles, source[:, :, None, :, None], axis=3)


def offsets(
    rng: Key[Array, ""], index: ops.Index, shape: tuple[int, ...], room: int | Int[Array, "..."]
) -> Int[Array, "batch ..."]:
    """Draws integers of the given shape for each image, uniform in 0, ..., room - 1."""
    draw = functools.partial(jax.random.randint, shape=shape, minval=0, maxval=room)
    return jax.vmap(draw)(image_keys(rng, index))


def uniform(rng: Key[Array, ""], index: ops.Index, shape: tuple[int, ...]) -> Float[Array, "batch ..."]:
    """Draws numbers of the given shape for each image, uniform in [0, 1)."""
    return jax.vmap(functools.partial(jax.random.uniform, shape=shape))(image_keys(rng, index))


def rotations(images: Images) -> Float[Array, "batch 4 height width channels"]:
    """Each image turned by 0, 1, 2 and 3 quarters, counterclockwise.

    Raises: ValueError for images that are not square.
    """
    if images.shape[1] != images.shape[2]:
        raise ValueError(f"rotation needs square views, got {images.shape[1]}x{images.shape[2]} pixels")
    return jnp.stack([jnp.rot90(images, turns, axes=(1, 2)) for turns in range(4)], axis=1)


def image_keys(rng: Key[Array, ""], index: ops.Index) -> Key[Array, " batch"]:
    """A key for each image, see `ops.example_keys`."""
    return ops.example_keys(rng, index)


def take(images: Images, corners: Int[Array, "batch tiles 2"], side: int) -> Tiles:
    """Cuts the tiles whose (top, left) are `corners`."""

    def one(
        image: Float[Array, "height width channels"], corner: Int[Array, "2"]
    ) -> Float[Array, "side side channels"]:
        return lax.dynamic_slice(image, (corner[0], corner[1], 0), (side, side, image.shape[-1]))

    return jax.vmap(jax.vmap(one, (None, 0)))(images, corners)


def as_images(tiles: Shaped[Array, "batch tiles ..."]) -> Shaped[Array, "rows ..."]:
    """All tiles as one batch for a network. `x.reshape(batch, tiles, ...)` is the inverse."""
    return tiles.reshape(-1, *tiles.shape[2:])

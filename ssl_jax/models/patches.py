"""Images as rows of square patches, or maps as rows of tiles, and back."""

from jaxtyping import Array, Shaped

from ssl_jax.models.positions import patch_grid


def patchify(
    images: Shaped[Array, "batch height width channels"], patch_size: int
) -> Shaped[Array, "batch patches pixels"]:
    """Patches row by row; pixels = patch_size * patch_size * channels, in the order of rows, columns, channels.

    Raises: ValueError if patches do not fill the images.
    """
    _, height, width, _ = images.shape
    patch_grid((height, width), patch_size)
    return to_tiles(images, (patch_size, patch_size))


def unpatchify(
    patches: Shaped[Array, "batch patches pixels"], size: tuple[int, int], patch_size: int
) -> Shaped[Array, "batch height width channels"]:
    """The inverse of `patchify`. size: (height, width) of the images."""
    patch_grid(size, patch_size)
    return from_tiles(patches, size, (patch_size, patch_size))


def to_tiles(
    x: Shaped[Array, "batch height width channels"], tile: tuple[int, int]
) -> Shaped[Array, "batch tiles values"]:
    """Tiles of size `tile` (height, width), which fill the map, row by row; values as the pixels of `patchify`."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // tile[0], tile[0], width // tile[1], tile[1], channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, (height // tile[0]) * (width // tile[1]), -1)


def from_tiles(
    tiles: Shaped[Array, "batch tiles values"], size: tuple[int, int], tile: tuple[int, int]
) -> Shaped[Array, "batch height width channels"]:
    """The inverse of `to_tiles`. size: (height, width) of the map."""
    x = tiles.reshape(len(tiles), size[0] // tile[0], size[1] // tile[1], *tile, -1)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(len(tiles), *size, -1)

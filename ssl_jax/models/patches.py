"""Images as rows of square patches, and back."""

from jaxtyping import Array, Shaped

from ssl_jax.models.positions import patch_grid


def patchify(
    images: Shaped[Array, "batch height width channels"], patch_size: int
) -> Shaped[Array, "batch patches pixels"]:
    """Patches row by row; pixels = patch_size * patch_size * channels, in the order of rows, columns, channels.

    Raises: ValueError if patches do not fill the images.
    """
    batch, height, width, channels = images.shape
    rows, columns = patch_grid((height, width), patch_size)
    x = images.reshape(batch, rows, patch_size, columns, patch_size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, -1)


def unpatchify(
    patches: Shaped[Array, "batch patches pixels"], size: tuple[int, int], patch_size: int
) -> Shaped[Array, "batch height width channels"]:
    """The inverse of `patchify`. size: (height, width) of the images."""
    rows, columns = patch_grid(size, patch_size)
    x = patches.reshape(len(patches), rows, columns, patch_size, patch_size, -1)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(len(patches), *size, -1)

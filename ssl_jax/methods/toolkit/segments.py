"""Segments of images by color and place, found on the device without labels or training."""

# pyright: reportUnknownMemberType=false

from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

from ssl_jax import ops


def segment(
    images: Float[Array, "batch height width channels"], side: int, place_weight: float, rounds: int = 10
) -> Int[Array, "batch height width"]:
    """k-means of an image's pixels by their values and places -> the number of each pixel's segment, below side^2.

    The segments begin as a grid of side x side squares. A pixel's place is its (row, column), each from -1 to 1, times
    `place_weight`. So a large weight leaves the grid as it is. Some segments may lose all their pixels.

    Args:
      images: normalized, so that values have a deviation of about 1.
      side: at least 1. rounds: of k-means, at least 0.
    Source: superpixels of SLIC (Achanta et al. 2012), with the whole image in place of a window.
    """
    batch, height, width, channels = images.shape
    values = lax.stop_gradient(images.astype(jnp.float32)).reshape(batch, -1, channels)
    places = jnp.stack(jnp.meshgrid(_middles(height), _middles(width), indexing="ij"), axis=-1).reshape(-1, 2)
    cell = jnp.floor((places + 1.0) / 2.0 * side).astype(jnp.int32)
    places = jnp.broadcast_to(place_weight * places, (batch, *places.shape))
    pixels = jnp.concatenate([values, places], axis=-1)  # [batch, height * width, channels + 2]
    first = jnp.broadcast_to(cell[:, 0] * side + cell[:, 1], pixels.shape[:2])
    count = side * side

    def again(_: Any, chosen: Int[Array, "batch pixels"]) -> Int[Array, "batch pixels"]:
        members = jax.nn.one_hot(chosen, count)
        sizes = jnp.sum(members, axis=1)
        sums = jnp.einsum("bpk,bpd->bkd", members, pixels, precision="highest")
        centers = sums / jnp.maximum(sizes, 1.0)[..., None]
        distances = jnp.sum((pixels[:, :, None] - centers[:, None]) ** 2, axis=-1)
        return jnp.argmin(jnp.where(sizes[:, None] > 0, distances, jnp.inf), axis=-1).astype(jnp.int32)

    last = cast(Array, lax.fori_loop(0, rounds, again, ops.vary_like(first, pixels)))
    return last.reshape(batch, height, width)


def _middles(size: int) -> Float[Array, "{size}"]:
    """Of the pixels of an axis, from -1 to 1."""
    return (2.0 * jnp.arange(size) + 1.0) / size - 1.0


def at_places(
    segments: Int[Array, "batch pixels"],
    pixels: Float[Array, "batch pixels 2"],
    places: Float[Array, "batch positions 2"],
) -> Int[Array, "batch positions"]:
    """The segment of the pixel that is nearest to each place. pixels: their places."""
    distances = jnp.sum((places[:, :, None] - pixels[:, None]) ** 2, axis=-1)
    return jnp.take_along_axis(segments, jnp.argmin(distances, axis=-1), axis=1)


def background(
    images: Float[Array, "batch height width channels"],
    segments: Int[Array, "batch height width"],
    count: int,
    color_width: float = 0.3,
) -> Bool[Array, "batch height width"]:
    """The pixels of segments that belong to the image's border: what is long there for its area is background.

    A segment's region is all segments of about its color: with weight exp(-distance^2 / (2 * color_width^2)), where the
    distance is that of mean values. With length the region's pixels on the border of the image, and area all of them,
    its connectivity is length / sqrt(area). It is background where 1 - exp(-connectivity^2 / 2) is above 1 / 2. An
    image that would be all background has none. There are no labels and no training: an object of its surroundings'
    color, or one that is cut by the border, is missed.

    Args:
      images: whole images, normalized, so that values have a deviation of about 1.
      segments: of `segment`, numbers below `count`.
    Source: boundary connectivity of Zhu et al. 2014, "Saliency Optimization from Robust Background Detection" (CVPR),
      section 3, with distances of colors in place of those along paths from segment to segment.
    """
    height, width = segments.shape[1:]
    values = lax.stop_gradient(images.astype(jnp.float32))
    members = jax.nn.one_hot(segments, count)
    sizes = jnp.sum(members, axis=(1, 2))
    means = jnp.einsum("bhwk,bhwc->bkc", members, values, precision="highest") / jnp.maximum(sizes, 1.0)[..., None]
    distances = jnp.sum((means[:, :, None] - means[:, None]) ** 2, axis=-1)
    alike = jnp.exp(-distances / (2.0 * color_width**2))
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)
    border = (rows == 0) | (rows == height - 1) | (columns == 0) | (columns == width - 1)
    on_border = jnp.sum(members * border[..., None], axis=(1, 2))
    length, area = (jnp.einsum("bkl,bl->bk", alike, x, precision="highest") for x in (on_border, sizes))
    connectivity = length / jnp.sqrt(jnp.maximum(area, 1.0))
    of_segment = 1.0 - jnp.exp(-(connectivity**2) / 2.0) > 0.5
    found = jnp.take_along_axis(of_segment, segments.reshape(len(segments), -1), axis=1).reshape(segments.shape)
    return found & ~jnp.all(found, axis=(1, 2), keepdims=True)


def in_view(
    whole: Shaped[Array, "batch height width"], places: Float[Array, "batch positions 2"]
) -> Shaped[Array, "batch positions"]:
    """The values of an upright, undistorted map of the whole image at places in it, as `map_positions` gives them."""
    height, width = whole.shape[1:]
    row, column = (
        jnp.clip(jnp.floor(places[..., axis] * size).astype(jnp.int32), 0, size - 1)
        for axis, size in enumerate((height, width))
    )
    return jnp.take_along_axis(whole.reshape(len(whole), -1), row * width + column, axis=1)

"""Crops, resizing and blur of one image, as one matrix for its rows and one for its columns.

Two small matrix products per image take any box to one fixed shape. There are no gathers and no shapes that depend on
data, and an accelerator's multiplication units do the work. The numbers may be traced, for `jax.vmap` over a batch.
"""

# pyright: reportUnknownMemberType=false

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ssl_jax.data.crop import RandomCrop

Scalar = Float[Array, ""]


def separable(
    image: Float[Array, "channels height width"],
    rows: Float[Array, "new_height height"],
    columns: Float[Array, "new_width width"],
) -> Float[Array, "channels new_height new_width"]:
    """`rows @ channel @ columns.T` of each channel."""
    # A TPU's default, products of 8 bits, would keep less of an image than uint8 does. HIGH has 16 bits or more.
    return jnp.einsum("ph,chw,qw->cpq", rows, image, columns, precision=lax.Precision.HIGH)


def random_box(draws: Float[Array, "tries 4"], *, image_size: tuple[int, int], crop: RandomCrop) -> Float[Array, "4"]:
    """`RandomCrop.box` on the device: (top, left, height, width), in whole pixels, of a random region.

    Args:
      draws: uniform in [0, 1): area, aspect, top and left of each try. The first region that lies within the image is
        taken. If none does, it is the largest centered region whose aspect is allowed.
      image_size: (height, width).
    """
    full_height, full_width = image_size
    area, aspect, top, left = draws.T
    low, high = crop.area
    area = full_height * full_width * (low + (high - low) * area)
    low, high = np.log(crop.aspect)
    aspect = jnp.exp(low + (high - low) * aspect)
    height, width = jnp.round(jnp.sqrt(area / aspect)), jnp.round(jnp.sqrt(area * aspect))
    fits = (height > 0) & (height <= full_height) & (width > 0) & (width <= full_width)
    top, left = jnp.floor(top * (full_height - height + 1)), jnp.floor(left * (full_width - width + 1))
    boxes = jnp.stack([top, left, height, width])
    first = fits & (jnp.cumsum(fits) == 1)

    low, high = crop.aspect
    h = min(full_height, max(round(full_width / low), 1))
    w = min(full_width, max(round(full_height * high), 1))
    middle = np.array([(full_height - h) // 2, (full_width - w) // 2, h, w], np.float32)
    return jnp.where(jnp.any(fits), jnp.sum(jnp.where(first, boxes, 0.0), axis=1), middle)


def moved_box(box: Float[Array, "4"], shifts: Float[Array, "2"], *, image_size: tuple[int, int]) -> Float[Array, "4"]:
    """`RandomCrop.moved` on the device. shifts: down and to the right, as shares of the box's height and width."""
    most = jnp.array(image_size, jnp.float32) - box[2:]
    return jnp.concatenate([jnp.minimum(box[:2] + jnp.round(shifts * box[2:]), most), box[2:]])


def triangle(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The kernel of linear interpolation, of support (-1, 1)."""
    return jnp.maximum(1.0 - jnp.abs(x), 0.0)


def cubic(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Keys' cubic kernel of support (-2, 2) with a = -0.5, as in Pillow and in torch's antialiased resizing."""
    x = jnp.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return jnp.where(x < 1.0, near, jnp.where(x < 2.0, far, 0.0))


KERNELS: dict[str, Callable[[Array], Array]] = {"bilinear": triangle, "bicubic": cubic}


def interpolation_matrix(
    start: Scalar,
    length: Scalar,
    *,
    old: int,
    new: int,
    interpolation: str,
    reverse: Bool[Array, ""] | bool = False,
) -> Float[Array, "new old"]:
    """Resizes the pixels [start, start + length) of a line of `old` pixels to a line of `new` pixels, antialiased.

    Like torchvision's `resize(line[start : start + length], new, antialias=True)`. To shrink, the kernel is widened to
    the distance of the new pixels. Pixels outside of the box have weight 0.

    Args:
      interpolation: a key of `KERNELS`.
      reverse: whether the new line is mirrored.
    """
    position = jnp.arange(new)
    position = jnp.where(reverse, new - 1 - position, position)
    scale = length / new
    center = (position + 0.5) * scale  # `center` and `pixel` are places within the box, in old pixels
    pixel = jnp.arange(old) + 0.5 - start
    weights = KERNELS[interpolation]((pixel - center[:, None]) / jnp.maximum(scale, 1.0))
    return _rows_sum_to_one(jnp.where((pixel > 0) & (pixel < length), weights, 0.0))


def window_matrix(
    start: Int[Array, ""], *, old: int, resized: int, padding: int, new: int, interpolation: str, reverse: Any = False
) -> Float[Array, "new old"]:
    """Resizes a line of `old` pixels to `resized`, puts `padding` zeros at both ends, and takes [start, start + new).

    reverse: whether the new line is mirrored.
    """
    whole = interpolation_matrix(jnp.float32(0.0), jnp.float32(old), old=old, new=resized, interpolation=interpolation)
    padded = jnp.pad(whole, ((padding, padding), (0, 0)))
    position = jnp.arange(new)
    return padded[start + jnp.where(reverse, new - 1 - position, position)]


def nearest_affine(
    image: Float[Array, "channels height width"], matrix: Float[Array, "2 2"], shift: Float[Array, "2"]
) -> Float[Array, "channels height width"]:
    """The new pixel at (row, column) is the old pixel nearest to matrix @ (row, column) + shift.

    Rows and columns are counted from the image's middle. A place outside of the image gives black.
    """
    _, height, width = image.shape
    middle = jnp.array([(height - 1) / 2, (width - 1) / 2])[:, None]
    place = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")).reshape(2, -1)
    source = jnp.matmul(matrix, place - middle, precision="highest") + shift[:, None] + middle
    row, column = jnp.floor(source + 0.5).astype(jnp.int32)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    flat = jnp.where(inside, row * width + column, 0)
    return jnp.where(inside, image.reshape(len(image), -1)[:, flat], 0.0).reshape(image.shape)


def turned(image: Float[Array, "channels height width"], degrees: Scalar) -> Float[Array, "channels height width"]:
    """The image turned counterclockwise about its middle, nearest neighbors, on black: torchvision's RandomRotation."""
    sine, cosine = jnp.sin(jnp.radians(degrees)), jnp.cos(jnp.radians(degrees))
    return nearest_affine(image, jnp.array([[cosine, sine], [-sine, cosine]]), jnp.zeros(2))


def blur_matrix(sigma: Scalar, *, taps: int, size: int) -> Float[Array, "size size"]:
    """Blurs a line of `size` pixels with a Gaussian, like torchvision's `gaussian_blur`.

    Args:
      sigma: in pixels, > 0.
      taps: of the Gaussian, odd, at most 2 * size - 1.
    """
    i, last = np.arange(size), size - 1
    # A line is reflected at its ends, without repeating the end pixel: pixel j is at j, at -j and at 2 * last - j.
    never = taps
    distance = np.stack(
        [
            i - i[:, None],
            np.where(i > 0, -i - i[:, None], never),
            np.where(i < last, 2 * last - i - i[:, None], never),
        ]
    )
    weights = jnp.where(np.abs(distance) <= taps // 2, jnp.exp(-0.5 * (distance / sigma) ** 2), 0.0)
    return _rows_sum_to_one(jnp.sum(weights, axis=0))


def _rows_sum_to_one(weights: Float[Array, "new old"]) -> Float[Array, "new old"]:
    return weights / jnp.sum(weights, axis=1, keepdims=True)

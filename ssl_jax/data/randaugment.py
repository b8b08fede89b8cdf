"""RandAugment on the device: operations of random kind and strength. `jax.vmap` gives each image its own.

An image is [channels, height, width]. Within this file its values are whole numbers 0..255 in float32: the operations
are Pillow's on 8 bits, and round as Pillow does.

The kind of operation depends on data, so all kinds are computed and one is kept. This takes few passes. Eight kinds are
tables of the 256 values; one table is looked up. Five are affine maps; one map is sampled. Two blend the image with a
gray and with a smoothed one.

Source: Cubuk et al. 2019, arXiv:1909.13719; kinds, strengths and defaults as in timm's "rand-m9-mstd0.5-inc1"
(timm/data/auto_augment.py), with which DeiT, BEiT and MAE fine-tune.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from jaxtyping import Array, Float, Int, Key

Image = Float[Array, "channels height width"]
Scalar = Float[Array, ""] | float
Index = Int[Array, ""] | int

# The kinds of operation. The number of a kind is its index in OPERATIONS.
TABLES = ("autocontrast", "equalize", "invert", "posterize", "solarize", "solarize_add", "contrast", "brightness")
MAPS = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
OPERATIONS = (*TABLES, "color", "sharpness", *MAPS)
STRONGEST = 10.0  # magnitude
# At that magnitude: degrees; horizontal shift a row; share of the side; how far a blend goes beyond the image.
DEGREES, SHEAR, SHIFT, BLEND = 30.0, 0.3, 0.45, 0.9


def rand_augment(
    key: Key[Array, ""],
    image: Image,
    *,
    fill: Sequence[float],
    magnitude: float = 9.0,
    deviation: float = 0.5,
    layers: int = 2,
    probability: float = 0.5,
) -> Image:
    """The image after `layers` random operations, some of them left out.

    Args:
      image: in 0..1, of any number of channels; it is rounded to 8 bits.
      fill: for each channel, a value in 0..1 for pixels from outside the image; timm uses the channels' means.
      magnitude, deviation: an operation's magnitude is normal with these, clipped to 0..10. Its sign is random.
      layers: number of operations, drawn with replacement from OPERATIONS.
      probability: that a layer's operation is applied.
    Returns: in 0..1, in steps of 1/255.
    """
    image = jnp.round(255.0 * image)
    filled = jnp.round(255.0 * jnp.asarray(fill, jnp.float32))
    for layer in random.split(key, layers):
        keys = random.split(layer, 4)
        operation = random.randint(keys[0], (), 0, len(OPERATIONS))
        level = jnp.clip(magnitude + deviation * random.normal(keys[1]), 0.0, STRONGEST) / STRONGEST
        sign = jnp.where(random.bernoulli(keys[2]), 1.0, -1.0)
        applied = random.bernoulli(keys[3], probability)
        image = jnp.where(applied, operate(image, operation, level, sign, filled), image)
    return image / 255.0


def operate(image: Image, operation: Index, level: Scalar, sign: Scalar, fill: Float[Array, "channels"]) -> Image:
    """The image after one operation.

    Args:
      image, fill: whole numbers 0..255.
      operation: an index into OPERATIONS.
      level: strength in 0..1. invert, equalize and autocontrast do not depend on it. At 0, posterize keeps 4 bits and
        all others do nothing.
      sign: 1 or -1. -1 moves to the other side, or gives less where 1 gives more. Of TABLES, only contrast and
        brightness depend on it.
    """
    factor = jnp.maximum(1.0 + BLEND * sign * level, 0.1)
    tables = _tables(image, operation, level, factor)
    image = jax.vmap(_look_up)(tables, image)
    blends = {"color": _gray, "sharpness": _smooth}
    for name, other in blends.items():
        image = jnp.where(operation == OPERATIONS.index(name), _blend(other(image), image, factor), image)
    first = OPERATIONS.index(MAPS[0])
    _, height, width = image.shape
    matrix = _matrix(operation - first, sign * level, (height, width))
    return jnp.where(operation >= first, warp(image, matrix, fill), image)


def _look_up(table: Float[Array, "256"], channel: Float[Array, "height width"]) -> Float[Array, "height width"]:
    return table[channel.astype(jnp.int32)]


def _tables(image: Image, operation: Index, level: Scalar, factor: Scalar) -> Float[Array, "channels 256"]:
    """For each channel, the new value of each of the 256 values."""
    values = jnp.arange(256, dtype=jnp.float32)
    low, high = jnp.min(image, axis=(1, 2))[:, None], jnp.max(image, axis=(1, 2))[:, None]
    # The floor of the exact quotient. 1e-4 keeps a whole number from falling below itself by rounding.
    stretched = jnp.floor((values - low) * 255.0 / jnp.maximum(high - low, 1.0) + 1e-4)
    bits = 8.0 - (4.0 - jnp.floor(4.0 * level))  # number of bits that are lost
    step = 2.0**bits
    threshold = 256.0 - jnp.floor(256.0 * level)
    mean = jnp.floor(jnp.mean(_gray(image)[0]) + 0.5)
    made = {
        "autocontrast": jnp.where(high > low, jnp.clip(stretched, 0.0, 255.0), values),
        "equalize": jax.vmap(_equalized)(image),
        "invert": 255.0 - values,
        "posterize": jnp.floor(values / step) * step,
        "solarize": jnp.where(values < threshold, values, 255.0 - values),
        "solarize_add": jnp.where(
            values < 128.0, jnp.minimum(values + jnp.floor(jnp.minimum(110.0 * level, 128.0)), 255.0), values
        ),
        "contrast": _blend(mean, values, factor),
        "brightness": _blend(0.0, values, factor),
    }
    table = jnp.broadcast_to(values, (len(image), 256))
    for number, name in enumerate(TABLES):
        table = jnp.where(operation == number, made[name], table)
    return table


def _equalized(channel: Float[Array, "height width"]) -> Float[Array, "256"]:
    """The table that gives each value a part of 0..255 in proportion to its pixels; the identity if that cannot be."""
    ordered = jnp.sort(channel.ravel())
    below = jnp.searchsorted(ordered, jnp.arange(257, dtype=channel.dtype))  # how many pixels are less than each value
    most = below[256] - jnp.searchsorted(ordered, ordered[-1])  # how many pixels have the largest value
    step = (below[256] - most) // 255
    table = (step // 2 + below[:256]) // jnp.maximum(step, 1)
    return jnp.where(step > 0, jnp.clip(table, 0, 255), jnp.arange(256)).astype(jnp.float32)


def _blend(other: Float[Array, "..."] | float, image: Float[Array, "..."], factor: Scalar) -> Float[Array, "..."]:
    """`image` at factor 1, `other` at 0; a factor above 1 goes beyond the image. Rounded down, not to the nearest."""
    return jnp.floor(jnp.clip(other + factor * (image - other), 0.0, 255.0))


def _gray(image: Image) -> Float[Array, "#channels height width"]:
    """The luma of three channels, rounded as in Pillow. With any other number of channels, the image itself."""
    if len(image) != 3:
        return image
    red, green, blue = image
    return jnp.floor((19595.0 * red + 38470.0 * green + 7471.0 * blue + 32768.0) / 65536.0)[None]


def _smooth(image: Image) -> Image:
    """Averages each pixel, of weight 5/13, with its eight neighbors. Pixels at the edge do not change."""
    _, height, width = image.shape
    if min(height, width) < 3:
        return image
    total = 4.0 * image[:, 1:-1, 1:-1]
    for row in range(3):
        for column in range(3):
            total += image[:, row : row + height - 2, column : column + width - 2]
    return image.at[:, 1:-1, 1:-1].set(jnp.floor(total / 13.0 + 0.5))


def _matrix(number: Index, signed: Scalar, size: tuple[int, int]) -> Float[Array, "2 3"]:
    """The matrix of MAPS[number] at a strength in -1..1. It maps a place (x, y) of the new image to one of the old."""
    height, width = size
    angle = jnp.deg2rad(DEGREES * signed)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x, y = width / 2, height / 2
    one, shear = jnp.float32(1.0), SHEAR * signed
    rows = [
        [cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y],  # about the middle, counterclockwise
        [one, shear, 0.0, 0.0, one, 0.0],
        [one, 0.0, 0.0, shear, one, 0.0],
        [one, 0.0, SHIFT * signed * width, 0.0, one, 0.0],
        [one, 0.0, 0.0, 0.0, one, SHIFT * signed * height],
    ]
    matrices = jnp.stack([jnp.stack([jnp.asarray(entry, jnp.float32) for entry in row]) for row in rows])
    return matrices[jnp.clip(number, 0, len(MAPS) - 1)].reshape(2, 3)


def warp(image: Image, matrix: Float[Array, "2 3"], fill: Float[Array, "channels"]) -> Image:
    """The image seen through an affine map, by cubic interpolation; `fill` for pixels that come from outside.

    Like Pillow's `transform(..., AFFINE, BICUBIC)`, whose kernel has a = -1. Pillow's `resize` has a = -1/2.
    """
    _, height, width = image.shape
    y, x = jnp.meshgrid(jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij")
    places = [matrix[axis, 0] * x + matrix[axis, 1] * y + matrix[axis, 2] for axis in (0, 1)]
    inside = (places[0] >= 0) & (places[0] < width) & (places[1] >= 0) & (places[1] < height)
    columns, rows = (_taps(place - 0.5, size) for place, size in zip(places, (width, height), strict=True))
    total = jnp.zeros_like(image)
    for row, row_weight in rows:
        for column, column_weight in columns:
            total += row_weight * column_weight * image[:, row, column]
    # 1e-3 keeps a whole number from falling below itself by rounding.
    return jnp.where(inside, jnp.floor(jnp.clip(total + 1e-3, 0.0, 255.0)), fill[:, None, None])


def _taps(
    place: Float[Array, "height width"], size: int
) -> list[tuple[Int[Array, "height width"], Float[Array, "height width"]]]:
    """The four pixels along a line that make a place, and their weights. Beyond an end, the last pixel repeats."""
    first = jnp.floor(place)
    d = place - first
    weights = [((2 - d) * d - 1) * d, (d - 2) * d * d + 1, ((1 - d) * d + 1) * d, (d - 1) * d * d]
    index = [jnp.clip(first + step, 0, size - 1).astype(jnp.int32) for step in (-1, 0, 1, 2)]
    return list(zip(index, weights, strict=True))


def random_erase(
    key: Key[Array, ""],
    image: Image,
    *,
    probability: float,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
    tries: int = 10,
) -> Image:
    """With `probability`, a random rectangle of the image becomes normal noise.

    Args:
      image: normalized, so that noise of mean 0 and deviation 1 is in its range.
      area: (least, most) share of the image, uniform; aspect: (least, most) height / width, log-uniform.
      tries: rectangles that are drawn. The first that fits is taken; if none fits, the image does not change.
    Source: Zhong et al. 2017, arXiv:1708.04896; as timm's mode "pixel", with which DeiT and MAE fine-tune.
    """
    _, height, width = image.shape
    key_apply, key_box, key_noise = random.split(key, 3)
    draws = random.uniform(key_box, (4, tries))
    areas = (area[0] + (area[1] - area[0]) * draws[0]) * height * width
    low, high = np.log(aspect)
    aspects = jnp.exp(low + (high - low) * draws[1])
    heights, widths = jnp.round(jnp.sqrt(areas * aspects)), jnp.round(jnp.sqrt(areas / aspects))
    fits = (heights < height) & (widths < width)
    chosen = jnp.argmax(fits)
    box_height, box_width = heights[chosen], widths[chosen]
    top = jnp.floor(draws[2, chosen] * (height - box_height + 1))
    left = jnp.floor(draws[3, chosen] * (width - box_width + 1))
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None]
    erased = (rows >= top) & (rows < top + box_height) & (columns >= left) & (columns < left + box_width)
    erased &= fits[chosen] & random.bernoulli(key_apply, probability)
    return jnp.where(erased, random.normal(key_noise, image.shape), image)

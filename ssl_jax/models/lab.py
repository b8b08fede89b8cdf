"""CIE L*a*b* (white D65) of sRGB in 0..1: lightness L in 0..100, and the colors a and b, both 0 for grays."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Middle, and half the width, of the ranges of L, a and b over all colors of a screen. CMC's authors normalize by these.
LAB_MIDDLE = np.array([50.0, 6.025, -6.6895], np.float32)
LAB_HALF = np.array([50.0, 92.208, 101.1675], np.float32)
# Linear red, green and blue of sRGB -> X, Y and Z over those of white.
RGB_TO_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
XYZ_OF_RGB = (RGB_TO_XYZ / RGB_TO_XYZ.sum(axis=1, keepdims=True)).astype(np.float32)
RGB_OF_XYZ = np.linalg.inv(RGB_TO_XYZ / RGB_TO_XYZ.sum(axis=1, keepdims=True)).astype(np.float32)


def lab_of_rgb(rgb: Float[Array, "*batch 3"]) -> Float[Array, "*batch 3"]:
    """L, a and b of sRGB in 0..1."""
    linear = jnp.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = jnp.matmul(linear, XYZ_OF_RGB.T, precision="highest")
    f = jnp.where(xyz > (6 / 29) ** 3, jnp.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = jnp.moveaxis(f, -1, 0)
    return jnp.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def rgb_of_lab(lab: Float[Array, "*batch 3"]) -> Float[Array, "*batch 3"]:
    """The inverse of `lab_of_rgb`; colors that no screen has are clipped to 0..1, channel by channel."""
    lightness, a, b = jnp.moveaxis(lab, -1, 0)
    y = (lightness + 16) / 116
    f = jnp.stack([y + a / 500, y, y - b / 200], axis=-1)
    xyz = jnp.where(f > 6 / 29, f**3, (f - 4 / 29) * 3 * (6 / 29) ** 2)
    linear = jnp.clip(jnp.matmul(xyz, RGB_OF_XYZ.T, precision="highest"), 0.0, 1.0)
    return jnp.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)


def lab_of_normalized(
    images: Float[Array, "batch height width channels"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "batch height width 3"]:
    """L, a and b of images normalized by `mean` and `std`. The normalization is undone first.

    Raises: ValueError for images, means or deviations of other than three channels.
    """
    if images.shape[-1] != 3 or not len(mean) == len(std) == 3:
        raise ValueError(
            "L*a*b* needs red, green and blue with a mean and std of each, "
            f"got images of {images.shape[-1]} channels, mean={mean}, std={std}; read color images with "
            'data.channels=3, or in a split_resnet use parts="bands" for images of other channels'
        )
    rgb = images.astype(jnp.float32) * np.asarray(std, np.float32) + np.asarray(mean, np.float32)
    return lab_of_rgb(jnp.clip(rgb, 0.0, 1.0))


def normalized_of_lab(
    lab: Float[Array, "batch height width 3"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "batch height width 3"]:
    """The inverse of `lab_of_normalized`."""
    return (rgb_of_lab(lab) - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)


def scale_lab(lab: Float[Array, "*batch 3"]) -> Float[Array, "*batch 3"]:
    """L, a and b, each scaled to -1..1 for a network."""
    return (lab - LAB_MIDDLE) / LAB_HALF

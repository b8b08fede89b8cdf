"""A ResNet of two halves, each for a part of what an image shows (Tian et al. 2019, arXiv:1906.05849)."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ssl_jax.models._options import check_choice
from ssl_jax.models.resnet import ResNet

PARTS = ("lab", "bands")
# L, a and b of all colors of a screen: the middles of their ranges and half of these, as the authors normalize them.
LAB_MIDDLE = np.array([50.0, 6.025, -6.6895], np.float32)
LAB_HALF = np.array([50.0, 92.208, 101.1675], np.float32)
# Linear red, green and blue of sRGB -> X, Y and Z over those of white (D65).
RGB_TO_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
XYZ_OF_RGB = (RGB_TO_XYZ / RGB_TO_XYZ.sum(axis=1, keepdims=True)).astype(np.float32)
BLUR = np.array([1, 4, 6, 4, 1], np.float32) / 16  # a standard deviation of 1 pixel


class SplitResNet(ResNet):
    """Two ResNets, each of half the width, on two parts of an image -> the features of the one, then of the other.

    parts: "lab": lightness L, and the colors a and b, of images of red, green and blue. Their normalization is undone
      for that: `mean` and `std` are the data's. "bands": the image blurred, and what the blur took away. That is ours,
      for gray images, which have no colors.
    The other fields are ResNet's.

    Raises: ValueError for parts that it does not know, and in a call for "lab" of images without three channels.
    """

    parts: str = "lab"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def __post_init__(self):
        check_choice("parts", self.parts, PARTS)
        super().__post_init__()

    @property
    def dim(self) -> int:
        return 2 * ResNet(**self.half_options, parent=None).dim

    @property
    def half_options(self) -> dict[str, Any]:
        names = [field.name for field in dataclasses.fields(ResNet) if field.name not in ("parent", "name")]
        return {**{name: getattr(self, name) for name in names}, "width": self.width / 2}

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        train: bool = False,
        axis_name: str | None = None,
        pool: bool = True,
    ) -> Float[Array, "batch *map dim"]:
        """As ResNet."""
        split = split_bands(images) if self.parts == "bands" else split_lab(images, self.mean, self.std)
        halves = [
            ResNet(**self.half_options, name=name)(part, train, axis_name, pool)
            for name, part in zip(("first", "second"), split, strict=True)
        ]
        return jnp.concatenate(halves, axis=-1)


def split_lab(
    images: Float[Array, "batch height width channels"], mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[Float[Array, "batch height width 1"], Float[Array, "batch height width 2"]]:
    """Lightness, and color, each in -1..1, of images normalized by `mean` and `std`."""
    if images.shape[-1] != 3 or not len(mean) == len(std) == 3:
        raise ValueError(
            f'parts="lab" needs red, green and blue with a mean and std of each, got images of {images.shape[-1]} '
            f'channels, mean={mean}, std={std}; use parts="bands" for gray images'
        )
    rgb = images.astype(jnp.float32) * np.asarray(std, np.float32) + np.asarray(mean, np.float32)
    lab = (lab_of_rgb(jnp.clip(rgb, 0.0, 1.0)) - LAB_MIDDLE) / LAB_HALF
    return lab[..., :1], lab[..., 1:]


def lab_of_rgb(rgb: Float[Array, "*batch 3"]) -> Float[Array, "*batch 3"]:
    """CIE L*a*b*, white D65: L in 0..100, of sRGB in 0..1."""
    linear = jnp.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = jnp.matmul(linear, XYZ_OF_RGB.T, precision="highest")
    f = jnp.where(xyz > (6 / 29) ** 3, jnp.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = jnp.moveaxis(f, -1, 0)
    return jnp.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def split_bands(
    images: Float[Array, "batch height width channels"],
) -> tuple[Float[Array, "batch height width channels"], Float[Array, "batch height width channels"]]:
    """The images blurred, their edges repeated outwards, and the rest: their sum is the images."""
    reach = len(BLUR) // 2
    low = images.astype(jnp.float32)
    for axis in (1, 2):
        pads = [(reach, reach) if i == axis else (0, 0) for i in range(4)]
        padded, size = jnp.pad(low, pads, mode="edge"), low.shape[axis]
        shifted = [(slice(None),) * axis + (slice(i, i + size),) for i in range(len(BLUR))]
        low = sum(weight * padded[window] for weight, window in zip(BLUR, shifted, strict=True))
    return low, images - low

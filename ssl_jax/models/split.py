"""A ResNet of two halves, each for a part of what an image shows (Tian et al. 2019, arXiv:1906.05849)."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ssl_jax.models._options import check_choice
from ssl_jax.models.lab import lab_of_normalized, scale_lab
from ssl_jax.models.resnet import ResNet

PARTS = ("lab", "bands")
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
    lab = scale_lab(lab_of_normalized(images, mean, std))
    return lab[..., :1], lab[..., 1:]


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

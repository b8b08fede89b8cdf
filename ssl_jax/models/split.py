"""A ResNet of two halves, each of which sees one part of an image (Tian et al. 2019, arXiv:1906.05849)."""

import dataclasses
from typing import Annotated, Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ssl_jax import keys
from ssl_jax.keys import OneOf
from ssl_jax.models._options import Mean, Std
from ssl_jax.models.hidden import at_size, hide, squares
from ssl_jax.models.lab import lab_of_normalized, scale_lab
from ssl_jax.models.resnet import ResNet

PARTS = ("lab", "bands")
BLUR = np.array([1, 4, 6, 4, 1], np.float32) / 16  # a standard deviation of 1 pixel


class SplitResNet(ResNet):
    """Two ResNets of half the width, each on one part of an image. Features: the first one's, then the second one's.

    Raises: ValueError for a value that a field cannot have, and with parts="lab" for other than three means and
    deviations; in a call, for images of other than three channels.
    """

    parts: Annotated[
        str,
        OneOf(PARTS),
        "What the halves see. lab: the lightness L, and the colors a and b, of images of red, green and blue.",
        "bands: the blurred image, and what the blur took away; ours, for images of other channels, as gray ones.",
    ] = "lab"
    mean: Mean = (0.0, 0.0, 0.0)
    std: Std = (1.0, 1.0, 1.0)

    def __post_init__(self):
        keys.check_fields(self)
        if self.parts == "lab" and not len(self.mean) == len(self.std) == 3:
            raise ValueError(
                'parts="lab" splits red, green and blue, with a mean and std for each, into lightness and color, got '
                f'mean={self.mean}, std={self.std}; for images of other channels use parts="bands" with the method cmc'
            )
        super().__post_init__()

    @property
    def dim(self) -> int:
        return 2 * ResNet(**self.half_options, parent=None).dim

    @property
    def half_options(self) -> dict[str, Any]:
        names = [field.name for field in dataclasses.fields(ResNet) if field.name not in ("parent", "name")]
        return {**{name: getattr(self, name) for name in names}, "width": self.width / 2}

    @nn.compact
    def stage_maps(
        self,
        images: Float[Array, "batch height width channels"],
        train: bool = False,
        axis_name: str | None = None,
        *,
        mask: Bool[Array, "batch places"] | None = None,
    ) -> tuple[Float[Array, "batch _ _ _"], ...]:
        """As in ResNet."""
        if mask is not None:  # before the blur, which would carry hidden pixels over the edges
            size = images.shape[1], images.shape[2]
            images = hide(images, at_size(squares(mask, size, self.stride), size))
        split = split_bands(images) if self.parts == "bands" else split_lab(images, self.mean, self.std)
        halves = [
            ResNet(**self.half_options, name=name).stage_maps(part, train, axis_name, mask=mask)
            for name, part in zip(("first", "second"), split, strict=True)
        ]
        return tuple(jnp.concatenate(maps, axis=-1) for maps in zip(*halves, strict=True))


def split_lab(
    images: Float[Array, "batch height width channels"], mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[Float[Array, "batch height width 1"], Float[Array, "batch height width 2"]]:
    """(lightness, color), each in -1..1, of images normalized by `mean` and `std`."""
    lab = scale_lab(lab_of_normalized(images, mean, std))
    return lab[..., :1], lab[..., 1:]


def split_bands(
    images: Float[Array, "batch height width channels"],
) -> tuple[Float[Array, "batch height width channels"], Float[Array, "batch height width channels"]]:
    """(the blurred images, the rest). Their sum is the images. The blur repeats the edges outwards."""
    reach = len(BLUR) // 2
    low = images.astype(jnp.float32)
    for axis in (1, 2):
        pads = [(reach, reach) if i == axis else (0, 0) for i in range(4)]
        padded, size = jnp.pad(low, pads, mode="edge"), low.shape[axis]
        shifted = [(slice(None),) * axis + (slice(i, i + size),) for i in range(len(BLUR))]
        weighted = (weight * padded[window] for weight, window in zip(BLUR, shifted, strict=True))
        low = sum(weighted, jnp.zeros(()))
    return low, images - low

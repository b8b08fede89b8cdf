"""`ConvDecoder`: from features to an image."""

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ssl_jax.models.conv import Conv
from ssl_jax.models.norm import BatchNorm


class ConvDecoder(nn.Module):
    """h [batch, features], or a map [batch, height, width, features] -> images [batch, *size, channels], float32.

    A linear layer makes a grid of 4 to 7 cells a side from h; each cell may depend on all of h. A map is a grid
    already. The grid is doubled until it has the images' size: nearest neighbors, a 3x3 convolution, BatchNorm, ReLU.
    Each doubling halves the channels, down to `width`. A last convolution gives the image; its values are not bounded.

    Raises: ValueError for a map that is larger than the images.

    It upsamples before a convolution. A transposed convolution's outputs would overlap unevenly: Odena, Dumoulin &
    Olah 2016, Deconvolution and checkerboard artifacts.
    """

    size: tuple[int, int]
    channels: int
    width: int = 32
    most_width: int = 512
    batch_norm: str = "sync"

    @nn.compact
    def __call__(
        self, h: Float[Array, "batch *map features"], train: bool = False, axis_name: str | None = None
    ) -> Float[Array, "batch height width channels"]:
        if h.ndim == 2:
            count = doublings(min(self.size))
            grid = tuple(math.ceil(side / 2**count) for side in self.size)
        else:
            grid = h.shape[1:3]
            if any(cells > side for side, cells in zip(self.size, grid, strict=True)):
                raise ValueError(
                    f"the backbone's map of {grid[0]}x{grid[1]} cells is larger than the {self.size[0]}x{self.size[1]} "
                    "pixels that are decoded from it; use a backbone with more stages or strides, or larger targets"
                )
            count = max(math.ceil(math.log2(side / cells)) for side, cells in zip(self.size, grid, strict=True))
        widths = [min(self.width * 2**i, self.most_width) for i in range(count, -1, -1)]
        cells = widths[0] * (math.prod(grid) if h.ndim == 2 else 1)
        x = nn.Dense(cells, name="grid")(h.astype(jnp.float32)).reshape(len(h), *grid, widths[0])
        x = nn.relu(BatchNorm(kind=self.batch_norm, name="bn0")(x, train, axis_name))
        for i, channels in enumerate(widths[1:], start=1):
            x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
            x = Conv(channels, (3, 3), padding=1, use_bias=False, name=f"conv{i}")(x)
            x = nn.relu(BatchNorm(kind=self.batch_norm, name=f"bn{i}")(x, train, axis_name))
        x = Conv(self.channels, (3, 3), padding=1, name="image")(x)
        return x[:, : self.size[0], : self.size[1]].astype(jnp.float32)


def doublings(side: int) -> int:
    """How many doublings lead from 4 to 7 pixels to this side; 0 for a smaller side."""
    return max(math.floor(math.log2(side / 4)), 0)

"""DCGAN's two networks (Radford, Metz & Chintala 2015, arXiv:1511.06434, section 3)."""

import math
from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ssl_jax import keys
from ssl_jax.keys import COUNT, Range
from ssl_jax.models._options import DType
from ssl_jax.models.conv import Conv
from ssl_jax.models.decoder import doublings
from ssl_jax.models.norm import BatchNorm, NormKind

weight_init = nn.initializers.normal(0.02)
LEAK = 0.2
POOLED = 4  # features are max-pooled to this many cells a side


class Discriminator(nn.Module):
    """Images [batch, height, width, channels] -> features [batch, dim]: all layers' maps, each max-pooled to 4x4.

    Each layer is a 4x4 convolution of stride 2, BatchNorm (not in the first) and a LeakyReLU of slope 0.2. It has twice
    the channels of the layer before. The last layer leaves 4 to 7 pixels a side. Features: section 5.1 of the paper.
    """

    image_size: Annotated[
        int, Range(2 * POOLED), "Side of the square images that it is made for; the number of layers follows from it."
    ] = 64
    base_width: Annotated[int, COUNT, "Channels of the first layer."] = 64
    batch_norm: NormKind = "sync"
    dtype: DType = "float32"

    def __post_init__(self):
        keys.check_fields(self)
        super().__post_init__()

    @property
    def widths(self) -> list[int]:
        return [self.base_width * 2**i for i in range(doublings(self.image_size))]

    @property
    def dim(self) -> int:
        return POOLED**2 * sum(self.widths)

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        train: bool = False,
        axis_name: str | None = None,
        pool: bool = True,
    ) -> Float[Array, "batch *map dim"]:
        """Features [batch, dim]; without `pool` the last layer's map [batch, height', width', channels']."""
        dtype = jnp.dtype(self.dtype)
        x, pooled = images.astype(dtype), []
        for i, channels in enumerate(self.widths):
            x = Conv(
                channels,
                (4, 4),
                (2, 2),
                padding=1,
                use_bias=i == 0,
                kernel_init=weight_init,
                dtype=dtype,
                name=f"conv{i}",
            )(x)
            if i > 0:
                x = BatchNorm(kind=self.batch_norm, dtype=dtype, name=f"bn{i}")(x, train, axis_name)
            x = nn.leaky_relu(x, LEAK)
            pooled.append(max_pool_to(x, POOLED).reshape(len(x), -1))
        return jnp.concatenate(pooled, axis=1).astype(jnp.float32) if pool else x.astype(jnp.float32)

    def feature_map(
        self, images: Float[Array, "batch height width channels"], train: bool = False, axis_name: str | None = None
    ) -> Float[Array, "batch rows columns channels2"]:
        """The last layer's map."""
        return self(images, train, axis_name, pool=False)


class Judge(nn.Module):
    """Images [batch, height, width, channels] -> logits [batch, 1]: positive for real, negative for made ones."""

    width: int = 64  # channels of the first layer

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool = False, axis_name: str | None = None
    ) -> Float[Array, "batch 1"]:
        discriminator = Discriminator(min(images.shape[1:3]), self.width, name="images")
        x = discriminator.feature_map(images, train, axis_name)
        return nn.Dense(1, kernel_init=weight_init, name="logit")(x.reshape(len(x), -1))


class Generator(nn.Module):
    """z [batch, latent] -> images [batch, image_size, image_size, channels] in -1..1.

    Each layer is a transposed 4x4 convolution of stride 2, BatchNorm and ReLU. The last layer has tanh instead of
    BatchNorm and ReLU.
    """

    image_size: int
    channels: int
    width: int = 64  # channels of the last layer before the image

    @nn.compact
    def __call__(
        self, z: Float[Array, "batch latent"], train: bool = False, axis_name: str | None = None
    ) -> Float[Array, "batch side side channels"]:
        count = doublings(self.image_size)
        side = math.ceil(self.image_size / 2**count)
        widths = [self.width * 2**i for i in range(count - 1, -1, -1)]
        x = nn.Dense(side * side * widths[0], use_bias=False, kernel_init=weight_init, name="grid")(z)
        x = nn.relu(BatchNorm(name="bn0")(x.reshape(len(z), side, side, widths[0]), train, axis_name))
        for i, channels in enumerate([*widths[1:], self.channels], start=1):
            last = i == count
            x = nn.ConvTranspose(
                channels, (4, 4), (2, 2), padding="SAME", use_bias=last, kernel_init=weight_init, name=f"conv{i}"
            )(x)
            if not last:
                x = nn.relu(BatchNorm(name=f"bn{i}")(x, train, axis_name))
        return jnp.tanh(x[:, : self.image_size, : self.image_size])


def max_pool_to(x: Float[Array, "batch height width channels"], side: int) -> Float[Array, "batch side side channels"]:
    """The maximum in each cell of a side x side grid. Cells are as equal in size as the map's pixels allow."""
    rows, columns = ([(i * n // side, -(-(i + 1) * n // side)) for i in range(side)] for n in x.shape[1:3])
    cells = [[jnp.max(x[:, a:b, c:d], axis=(1, 2)) for c, d in columns] for a, b in rows]
    return jnp.stack([jnp.stack(row, axis=1) for row in cells], axis=1)

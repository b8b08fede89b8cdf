"""BigGAN's networks (Brock, Donahue & Simonyan 2018, arXiv:1809.11096, appendix B), without labels and attention.

All linear layers and convolutions are divided by their largest singular value (spectral normalization, Miyato et al.
2018, arXiv:1802.05957), and begin orthogonal.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ssl_jax.models.conv import conv_general_dilated
from ssl_jax.models.decoder import doublings
from ssl_jax.models.heads import unit
from ssl_jax.models.norm import BatchNorm
from ssl_jax.models.unet import double


class SpectralLayer(nn.Module):
    """A linear layer [..., features] -> [..., width], or with `side` a convolution [batch, height, width, channels].

    In training, each call takes one step of the power iteration for the largest singular value.
    """

    width: int
    side: int = 0  # of a convolution's kernel

    @nn.compact
    def __call__(self, x: Float[Array, "batch ..."], train: bool = False) -> Float[Array, "batch ..."]:
        shape = (*(self.side,) * 2, x.shape[-1], self.width) if self.side else (x.shape[-1], self.width)
        kernel = self.param("kernel", nn.initializers.orthogonal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        direction = self.variable(
            "batch_stats", "direction", lambda: jax.random.normal(self.make_rng("params"), (self.width,))
        )
        matrix = kernel.reshape(-1, self.width)
        left = lax.stop_gradient(unit(matrix @ direction.value))
        right = lax.stop_gradient(unit(left @ matrix))
        if train and not self.is_initializing():
            direction.value = right
        kernel = kernel / (left @ matrix @ right)
        return (conv_general_dilated(x, kernel, (1, 1), "SAME") if self.side else x @ kernel) + bias


class Generator(nn.Module):
    """z [batch, latent] -> images [batch, image_size, image_size, channels] in -1..1.

    A linear layer makes a grid of 4 to 7 cells a side. Residual blocks double it. Their BatchNorms take scale and
    offset from z.
    """

    image_size: int
    channels: int
    width: int = 64  # channels of the last block

    @nn.compact
    def __call__(
        self, z: Float[Array, "batch latent"], train: bool = False, axis_name: str | None = None
    ) -> Float[Array, "batch side side channels"]:
        count = doublings(self.image_size)
        side = math.ceil(self.image_size / 2**count)
        widths = [self.width * 2**i for i in range(count - 1, -1, -1)]
        x = SpectralLayer(side * side * widths[0], name="grid")(z, train).reshape(len(z), side, side, widths[0])
        for i, width in enumerate(widths):
            x = GeneratorBlock(width, name=f"block{i}")(x, z, train, axis_name)
        x = nn.relu(BatchNorm(name="bn")(x, train, axis_name))
        return jnp.tanh(
            SpectralLayer(self.channels, 3, name="image")(x, train)[:, : self.image_size, : self.image_size]
        )


class GeneratorBlock(nn.Module):
    """x [batch, height, width, channels], z -> [batch, 2 height, 2 width, `width`]."""

    width: int

    @nn.compact
    def __call__(self, x, z, train, axis_name):
        y = double(nn.relu(norm_by(x, z, train, axis_name, "1")))
        y = SpectralLayer(self.width, 3, name="conv1")(y, train)
        y = nn.relu(norm_by(y, z, train, axis_name, "2"))
        y = SpectralLayer(self.width, 3, name="conv2")(y, train)
        return y + SpectralLayer(self.width, 1, name="shortcut")(double(x), train)


def norm_by(x, z, train, axis_name, name):
    """BatchNorm with scale and offset from z. Called in a module's __call__, whose parameters it has."""
    scale, offset = (
        SpectralLayer(x.shape[-1], name=f"{kind}{name}")(z, train)[:, None, None] for kind in ("scale", "offset")
    )
    return BatchNorm(use_scale=False, use_bias=False, name=f"bn{name}")(x, train, axis_name) * (1.0 + scale) + offset


class Features(nn.Module):
    """Images [batch, height, width, channels] -> [batch, dim]: the sum over positions after residual blocks.

    Blocks halve the image to 4 to 7 pixels a side; one more does not. dim = width * 2^(halvings - 1).
    """

    width: int = 64  # channels of the first block

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width channels"], train: bool) -> Float[Array, "batch dim"]:
        count = doublings(min(images.shape[1:3]))
        x = images
        for i in range(count + 1):
            width = self.width * 2 ** min(i, count - 1)
            y = x if i == 0 else nn.relu(x)
            y = SpectralLayer(width, 3, name=f"conv{i}_1")(y, train)
            y = SpectralLayer(width, 3, name=f"conv{i}_2")(nn.relu(y), train)
            x = x if x.shape[-1] == width else SpectralLayer(width, 1, name=f"shortcut{i}")(x, train)
            x = nn.avg_pool(x + y, (2, 2), (2, 2)) if i < count else x + y
        return jnp.sum(nn.relu(x), axis=(1, 2))


class ResidualMLP(nn.Module):
    """x [batch, features] -> [batch, width]: a linear layer, then blocks x + linear(relu(linear(relu(x))))."""

    width: int
    blocks: int
    spectral: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "batch features"], train: bool) -> Float[Array, "batch width"]:
        def linear(x: Float[Array, "batch _"], name: str) -> Float[Array, "batch width"]:
            return (
                SpectralLayer(self.width, name=name)(x, train) if self.spectral else nn.Dense(self.width, name=name)(x)
            )

        x = linear(x, "first")
        for i in range(self.blocks):
            x = x + linear(nn.relu(linear(nn.relu(x), f"block{i}_1")), f"block{i}_2")
        return x

"""DDPM's network (Ho, Jain & Abbeel 2020, arXiv:2006.11239, appendix B), which predicts the noise in an image.

As a backbone it gives the features of one of its blocks for an image with a chosen amount of noise (DDAE,
arXiv:2303.09769). Layers and initialization are those of DDAE's code.
"""

import functools
import math
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ssl_jax import keys
from ssl_jax.keys import COUNT, INNER_SHARE, NOT_NEGATIVE, Range
from ssl_jax.models._options import DType
from ssl_jax.models.attention import plain_attention
from ssl_jax.models.conv import Conv
from ssl_jax.models.heads import torch_bias_init, torch_dense, torch_init
from ssl_jax.models.stochastic_depth import row_keys

LONGEST_PERIOD = 10_000.0  # of the embedded times, which are in 0..1


class UNet(nn.Module):
    """Images [batch, height, width, channels] in -1..1 -> features [batch, dim], float32.

    A noisy image at step t is signal(t) * image + sqrt(1 - signal(t)^2) * noise, where signal(t)^2 is the product of
    1 - beta over the steps 1, ..., t. The betas grow in a straight line. The features of an image are the mean over
    positions of the output of `feature_block`, for the image at step `feature_step`. Its noise is the same for every
    image and every call, so that features can be computed again.

    The images' sides must be multiples of 2^(resolutions - 1). With dropout, training needs a key: apply(...,
    rngs={"dropout": key}).

    Raises: ValueError for a value that a field cannot have, or for fields or images that do not go together.
    """

    base_width: Annotated[int, COUNT, "Channels of the first layer, a multiple of 2 and of norm_groups."] = 128
    multipliers: Annotated[
        tuple[int, ...], COUNT, "Channels at each resolution over base_width. Each resolution is half the one before."
    ] = (1, 2, 2, 2)
    blocks: Annotated[int, COUNT, "Blocks at each resolution on the way down; there is one more on the way up."] = 2
    attention_at: Annotated[
        tuple[int, ...], NOT_NEGATIVE, "Resolutions, from 0, whose blocks have attention. The middle always has it."
    ] = (1,)
    residual_resampling: Annotated[
        bool, "Resolutions are halved and doubled within blocks, as in DDPM++; if not, by a convolution each."
    ] = False
    norm_groups: Annotated[int, COUNT, "Groups of channels that GroupNorm normalizes; the last has 8 at most."] = 32
    dropout: Annotated[
        float, Range(0.0, 1.0, below=True), "Probability, in training, that a number in a block becomes 0."
    ] = 0.1
    noise_steps: Annotated[int, COUNT, "Steps from an image to noise."] = 1000
    betas: Annotated[tuple[float, ...], INNER_SHARE, "Variances of the noise that the first and last steps add."] = (
        1e-4,
        0.02,
    )
    feature_step: Annotated[int, NOT_NEGATIVE, "Step whose noise an image has for its features; 0: no noise."] = 11
    feature_block: Annotated[
        int, COUNT, "Block on the way up, from 1 at the lowest resolution, whose output is the features."
    ] = 6
    dtype: DType = "float32"

    def __post_init__(self):
        keys.check_fields(self)
        count = len(self.multipliers) * (self.blocks + 1)
        if self.base_width % self.norm_groups or self.base_width % 2:
            raise ValueError(f"base_width={self.base_width} must be a multiple of 2 and norm_groups={self.norm_groups}")
        if len(self.betas) != 2:
            raise ValueError(f"betas must be two numbers, those of the first and last steps, got {self.betas}")
        if self.feature_block > count:
            raise ValueError(f"feature_block={self.feature_block} is more than the {count} blocks on the way up")
        if self.feature_step > self.noise_steps:
            raise ValueError(f"feature_step={self.feature_step} is more than noise_steps={self.noise_steps}")
        if any(number >= len(self.multipliers) for number in self.attention_at):
            raise ValueError(
                f"attention_at={self.attention_at} names resolutions from 0 to {len(self.multipliers) - 1}"
            )
        super().__post_init__()

    @property
    def dim(self) -> int:
        below = (self.feature_block - 1) // (self.blocks + 1)  # resolutions from the lowest
        return self.base_width * self.multipliers[-1 - below]

    @property
    def signals(self) -> Float[np.ndarray, "steps"]:
        """signal(t) of t = 0, ..., noise_steps: what an image is multiplied by; the noise has deviation
        sqrt(1 - signal^2)."""
        first, last = self.betas
        betas = np.linspace(first, last, self.noise_steps)
        return np.sqrt(np.cumprod(np.concatenate([[1.0], 1.0 - betas]))).astype(np.float32)

    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool = False, axis_name: str | None = None
    ) -> Float[Array, "batch dim"]:
        return jnp.mean(self.feature_map(images, train, axis_name), axis=(1, 2))

    def feature_map(
        self, images: Float[Array, "batch height width channels"], train: bool = False, axis_name: str | None = None
    ) -> Float[Array, "batch rows columns dim"]:
        """The features before their mean over positions."""
        noise = np.random.default_rng(0).normal(size=images.shape[1:]).astype(np.float32)
        steps = jnp.full(len(images), self.feature_step)
        noisy = self.add_noise(images, jnp.broadcast_to(noise, images.shape), steps)
        return self.predict_noise(noisy, steps, train, axis_name)[1]

    def add_noise(
        self,
        images: Float[Array, "batch height width channels"],
        noise: Float[Array, "batch height width channels"],
        steps: Int[Array, "batch"],
    ) -> Float[Array, "batch height width channels"]:
        """Images at these steps, from standard normal noise."""
        signal = jnp.asarray(self.signals)[steps][:, None, None, None]
        return signal * images + jnp.sqrt(1.0 - signal**2) * noise

    def remove_noise(
        self,
        noisy: Float[Array, "batch height width channels"],
        noise: Float[Array, "batch height width channels"],
        steps: Int[Array, "batch"],
    ) -> Float[Array, "batch height width channels"]:
        """The images that `add_noise` makes these of, if the noise is right."""
        signal = jnp.asarray(self.signals)[steps][:, None, None, None]
        return (noisy - jnp.sqrt(1.0 - signal**2) * noise) / signal

    @nn.compact
    def predict_noise(
        self,
        noisy: Float[Array, "batch height width channels"],
        steps: Int[Array, "batch"],
        train: bool = False,
        axis_name: str | None = None,
    ) -> tuple[Float[Array, "batch height width channels"], Float[Array, "batch rows columns dim"]]:
        """(noise of standard deviation 1, output of `feature_block`), float32, of images that are at these steps."""
        halvings = len(self.multipliers) - 1
        if any(side % 2**halvings for side in noisy.shape[1:3]):
            raise ValueError(
                f"{noisy.shape[1]}x{noisy.shape[2]} pixels cannot be halved {halvings} times; use sides that are "
                f"multiples of {2**halvings}, or fewer model.multipliers"
            )
        dtype = jnp.dtype(self.dtype)
        time = TimeEmbedding(self.base_width, name="time")(steps / self.noise_steps)
        options = dict(groups=self.norm_groups, dropout=self.dropout, dtype=dtype)
        block = functools.partial(Block, **options, train=train, axis_name=axis_name)
        x = conv3x3(self.base_width, noisy.shape[-1], dtype, "first")(noisy.astype(dtype))
        skipped = [x]
        for level, times in enumerate(self.multipliers):
            width, attention = times * self.base_width, level in self.attention_at
            for i in range(self.blocks):
                x = block(width, attention=attention, name=f"down{level}_{i}")(x, time)
                skipped.append(x)
            if level < halvings:
                name = f"halve{level}"
                x = (
                    block(width, resample="halve", name=name)(x, time)
                    if self.residual_resampling
                    else conv3x3(width, width, dtype, name, stride=2)(x)
                )
                skipped.append(x)
        width = self.multipliers[-1] * self.base_width
        x = block(width, attention=True, name="middle_0")(x, time)
        x = block(width, name="middle_1")(x, time)
        number, features = 0, x
        for level in range(halvings, -1, -1):
            width, attention = self.multipliers[level] * self.base_width, level in self.attention_at
            for i in range(self.blocks + 1):
                x = jnp.concatenate([x, skipped.pop()], axis=-1)
                x = block(width, attention=attention, name=f"up{level}_{i}")(x, time)
                number += 1
                features = x if number == self.feature_block else features
            if level > 0:
                name = f"double{level}"
                x = (
                    block(width, resample="double", name=name)(x, time)
                    if self.residual_resampling
                    else conv3x3(width, width, dtype, name)(double(x))
                )
        x = nn.silu(group_norm(math.gcd(8, self.norm_groups), jnp.float32, "norm")(x))
        return conv3x3(noisy.shape[-1], width, jnp.float32, "last")(x), features.astype(jnp.float32)


class TimeEmbedding(nn.Module):
    """Times [batch] in 0..1 -> [batch, 4 * width]: sines and cosines, then two linear layers with a SiLU between."""

    width: int

    @nn.compact
    def __call__(self, times):
        half = self.width // 2
        frequencies = LONGEST_PERIOD ** -(jnp.arange(half) / max(half - 1, 1))
        angles = times[:, None] * frequencies
        x = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
        x = nn.silu(torch_dense(4 * self.width, self.width, "fc1")(x))
        return torch_dense(4 * self.width, 4 * self.width, "fc2")(x)


class Block(nn.Module):
    """x [batch, height, width, channels], time [batch, features] -> [batch, height', width', `width`].

    Two convolutions after GroupNorm and SiLU are added to x. The time is added between them.

    resample: "halve" or "double" the sides, of what is added and of x. attention: of the result's positions, one head.
    """

    width: int
    groups: int
    dropout: float
    dtype: Any
    train: bool
    axis_name: str | None
    attention: bool = False
    resample: str = ""

    @nn.compact
    def __call__(self, x, time):
        resample = {"": lambda x: x, "halve": halve, "double": double}[self.resample]
        channels = x.shape[-1]
        y = resample(nn.silu(group_norm(self.groups, self.dtype, "norm1")(x)))
        y = conv3x3(self.width, channels, self.dtype, "conv1")(y)
        shift = torch_dense(self.width, time.shape[-1], "time")(nn.silu(time))
        y = y + shift[:, None, None].astype(self.dtype)
        y = nn.silu(group_norm(self.groups, self.dtype, "norm2")(y))
        if self.train and self.dropout > 0.0 and not self.is_initializing():
            y = drop(y, self.dropout, row_keys(self.make_rng("dropout"), len(y), self.axis_name))
        y = conv3x3(self.width, self.width, self.dtype, "conv2")(y)
        x = resample(x)
        if channels != self.width:
            x = convolution(self.width, channels, 1, self.dtype, "shortcut")(x)
        x = x + y
        return Attention(self.groups, self.dtype, name="attention")(x) if self.attention else x


class Attention(nn.Module):
    """x + the attention of its positions to each other, by one head as wide as x."""

    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        batch, height, width, channels = x.shape
        y = group_norm(self.groups, self.dtype, "norm")(x).reshape(batch, height * width, channels)
        linear = functools.partial(
            nn.Dense, kernel_init=torch_init, bias_init=torch_bias_init(channels), dtype=self.dtype
        )
        queries, keys, values = jnp.split(linear(3 * channels, name="qkv")(y)[:, :, None], 3, axis=-1)
        y = plain_attention(queries, keys, values).reshape(batch, height * width, channels)
        return x + linear(channels, name="output")(y).reshape(x.shape)


def drop(x: Float[Array, "batch ..."], rate: float, rows: Any) -> Float[Array, "batch ..."]:
    """Dropout of each row by its own key."""
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(rows)
    return jnp.where(kept, x / (1.0 - rate), 0.0)


def halve(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch _ _ channels"]:
    """The mean of each 2x2 pixels."""
    batch, height, width, channels = x.shape
    return jnp.mean(x.reshape(batch, height // 2, 2, width // 2, 2, channels), axis=(2, 4))


def double(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch _ _ channels"]:
    """Each pixel as 2x2 pixels."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def group_norm(groups: int, dtype: Any, name: str) -> nn.Module:
    # Not the fast variance, which loses its digits where a group's mean is far from 0.
    return nn.GroupNorm(groups, epsilon=1e-5, use_fast_variance=False, dtype=dtype, name=name)


def convolution(features: int, channels: int, side: int, dtype: Any, name: str, stride: int = 1) -> nn.Module:
    """Of this many channels, initialized as in torch."""
    return Conv(
        features,
        (side, side),
        (stride, stride),
        padding=side // 2,
        kernel_init=torch_init,
        bias_init=torch_bias_init(channels * side**2),
        dtype=dtype,
        name=name,
    )


def conv3x3(features: int, channels: int, dtype: Any, name: str, stride: int = 1) -> nn.Module:
    return convolution(features, channels, 3, dtype, name, stride)

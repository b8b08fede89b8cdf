"""EfficientNets: Tan & Le 2019, arXiv:1905.11946, as in timm: padded evenly on all sides, BatchNorm with eps 1e-5.

Modules have timm's names, with "_" for "." before a number, so that weights.py needs no table of names. Weights start
as in the authors' code and timm: normal, of variance 2 / (outputs that an input reaches), biases 0.
"""

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ssl_jax import keys
from ssl_jax.keys import COUNT, POSITIVE, Range
from ssl_jax.models import stochastic_depth
from ssl_jax.models._options import DType, Remat
from ssl_jax.models.conv import Conv
from ssl_jax.models.norm import BatchNorm, NormGroups, NormKind
from ssl_jax.models.recompute import block_of, group_of
from ssl_jax.models.resnet import convolution


class StageKind(NamedTuple):
    """Of a stage's blocks: kernel side and expansion; of its first block: stride; channels before width."""

    size: int
    stride: int
    expansion: int
    channels: int


# Table 1 of the paper.
STAGES = (
    StageKind(3, 1, 1, 16),
    StageKind(3, 2, 6, 24),
    StageKind(5, 2, 6, 40),
    StageKind(3, 2, 6, 80),
    StageKind(5, 1, 6, 112),
    StageKind(5, 2, 6, 192),
    StageKind(3, 1, 6, 320),
)
STEM, LAST = 32, 1280  # channels of the first and last convolutions, before width


class EfficientNet(nn.Module):
    """Images [batch, height, width, channels], any size -> features [batch, dim], averaged over positions, float32.

    With drop_path, training needs a key: apply(..., rngs={"dropout": key}).

    Raises: ValueError for a value that a field cannot have.
    """

    stages: Annotated[
        tuple[int, ...],
        COUNT,
        "Blocks of each stage, at most 7 stages. Stages 2, 3, 4 and 6 halve the resolution, as does the stem before",
        "them. B0's are (1, 2, 2, 3, 3, 4, 1).",
    ] = (1, 2, 2, 3, 3, 4, 1)
    width: Annotated[
        float, POSITIVE, "Factor of the channels of all layers, which are then rounded to multiples of 8."
    ] = 1.0
    drop_path: Annotated[
        float,
        Range(0.0, 1.0, below=True),
        "Probability, in training, that an image skips a branch (arXiv:1603.09382). Block i of n, from 0, has i / n",
        "of it. The authors have 0.2.",
    ] = 0.0
    batch_norm: NormKind = "sync"
    batch_norm_groups: NormGroups = 1
    remat: Remat = "none"
    dtype: DType = "float32"

    def __post_init__(self):
        keys.check_fields(self)
        if not 1 <= len(self.stages) <= len(STAGES):
            raise ValueError(f"an EfficientNet has 1 to {len(STAGES)} stages, got stages={self.stages}")
        super().__post_init__()

    @property
    def dim(self) -> int:
        return scaled(LAST, self.width)

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        train: bool = False,
        axis_name: str | None = None,
        pool: bool = True,
    ) -> Float[Array, "batch *map dim"]:
        """Features [batch, dim]; without `pool` the feature map [batch, rows, columns, dim]."""
        dtype, blocks = jnp.dtype(self.dtype), sum(self.stages)
        norm = {"kind": self.batch_norm, "groups": self.batch_norm_groups, "dtype": dtype}
        drops: list[Any] = [None] * blocks
        if train and self.drop_path > 0.0 and not self.is_initializing():
            noise = stochastic_depth.draw(self.make_rng("dropout"), len(images), blocks, 1, axis_name)
            drops = stochastic_depth.factors(noise, [self.drop_path * i / blocks for i in range(blocks)])
        x = conv(scaled(STEM, self.width), 3, 2, dtype, "conv_stem")(images.astype(dtype))
        x = nn.silu(BatchNorm(**norm, name="bn1")(x, train, axis_name))
        run, first = group_of(EfficientNet.run_stage, self.remat, constants=(3, 4, 5)), 0
        for stage, count in enumerate(self.stages):
            x = run(self, x, drops[first : first + count], stage, train, axis_name)
            first += count
        x = conv(self.dim, 1, 1, dtype, "conv_head")(x)
        x = nn.silu(BatchNorm(**norm, name="bn2")(x, train, axis_name))
        return jnp.mean(x, axis=(1, 2), dtype=jnp.float32) if pool else x.astype(jnp.float32)

    def run_stage(self, x, drops, stage, train, axis_name):
        """The map after all blocks of a stage; only `__call__` calls this."""
        block = block_of(Block, self.remat, constants=(3, 4))  # train and axis_name
        norm = {"kind": self.batch_norm, "groups": self.batch_norm_groups, "dtype": jnp.dtype(self.dtype)}
        kind = STAGES[stage]
        for i, drop in enumerate(drops):
            x = block(
                size=kind.size,
                stride=kind.stride if i == 0 else 1,
                expansion=kind.expansion,
                channels=scaled(kind.channels, self.width),
                norm=norm,
                name=f"blocks_{stage}_{i}",
            )(x, drop, train, axis_name)
        return x

    def feature_map(
        self, images: Float[Array, "batch height width channels"], train: bool = False, axis_name: str | None = None
    ) -> Float[Array, "batch rows columns dim"]:
        """The map of the last convolution. Its mean over positions is the features."""
        return self(images, train, axis_name, pool=False)


def scaled(channels: int, width: float) -> int:
    """channels * width, rounded to a multiple of 8 that is not less than 90 % of it, as in the authors' code."""
    wanted = channels * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * wanted else rounded + 8


class Block(nn.Module):
    """f(x), or x + f(x) where stride and channels allow it (MBConv: Sandler et al. 2018, arXiv:1801.04381).

    f: `expansion` times the channels by a 1x1 convolution (none where expansion is 1), a convolution of each channel,
    squeeze-and-excitation, and a 1x1 convolution. Each convolution is followed by BatchNorm, all but the last by SiLU.
    drop: a factor for each image's branch [batch, 1]; None: 1.
    """

    size: int
    stride: int
    expansion: int
    channels: int
    norm: Mapping[str, Any]

    @nn.compact
    def __call__(self, x, drop, train, axis_name):
        dtype, inputs, inner = self.norm["dtype"], x.shape[-1], x.shape[-1] * self.expansion

        def normalize(y, number):
            return BatchNorm(**self.norm, name=f"bn{number}")(y, train, axis_name)

        y, number = x, 1
        if self.expansion > 1:
            y = nn.silu(normalize(conv(inner, 1, 1, dtype, "conv_pw")(y), number))
            number += 1
        y = conv(inner, self.size, self.stride, dtype, "conv_dw", groups=inner)(y)
        y = nn.silu(normalize(y, number))
        y = SqueezeExcite(inputs // 4, dtype, name="se")(y)
        last = "conv_pwl" if self.expansion > 1 else "conv_pw"
        y = normalize(conv(self.channels, 1, 1, dtype, last)(y), number + 1)
        if self.stride > 1 or inputs != self.channels:
            return y
        return x + (y if drop is None else (y * drop[..., None, None]).astype(y.dtype))


class SqueezeExcite(nn.Module):
    """Each channel times a factor in 0..1 that an MLP finds from all channels' means; `width`: of its hidden layer.

    Source: Hu et al. 2017, arXiv:1709.01507.
    """

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        def layer(channels, name):
            return Conv(channels, (1, 1), kernel_init=kernel_init(1), dtype=self.dtype, name=name)

        y = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32).astype(self.dtype)
        y = layer(x.shape[-1], "conv_expand")(nn.silu(layer(self.width, "conv_reduce")(y)))
        return x * nn.sigmoid(y)


def kernel_init(groups: int) -> Any:
    # Flax counts all outputs in the fan-out, of which an input reaches only those of its group.
    return nn.initializers.variance_scaling(2.0 * groups, "fan_out", "normal")


def conv(channels: int, size: int, stride: int, dtype: Any, name: str, groups: int = 1) -> nn.Module:
    return convolution(channels, size, stride, dtype, name, groups=groups, kernel_init=kernel_init(groups))

"""ResNets v1.5 (He et al. 2015, arXiv:1512.03385; the stride in a bottleneck's 3x3 convolution, as torchvision has it).

Modules are named as torchvision's, a "." before a number being a "_", so that weights.py needs no table of names.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ssl_jax.models._options import DTYPES, check_choice
from ssl_jax.models.conv import Conv
from ssl_jax.models.norm import BatchNorm, check_options

# kernel side, stride, followed by a 3x3 max-pool of stride 2
STEMS = {"imagenet": (7, 2, True), "small": (3, 1, False), "strided": (3, 2, False)}


class ResNet(nn.Module):
    """Images [batch, height, width, channels], any size -> features [batch, dim], averaged over positions, float32.

    stages: blocks in each stage; every stage after the first halves the resolution and doubles the channels.
    bottleneck: blocks of 1x1, 3x3, 1x1 convolutions (four times the channels out) instead of two 3x3.
    base_width: channels of the first stage, times `width`. stem_width: of the stem; 0 for those of the first stage.
    stem: "imagenet" (7x7 of stride 2 and a max-pool: a quarter of the resolution), "small" (3x3, full resolution: for
      CIFAR) or "strided" (3x3 of stride 2: small images on a CPU).
    zero_init_residual: the last BatchNorm scale of each block starts at 0, and so the block as the identity.
    batch_norm, batch_norm_groups: see norm.BatchNorm. dtype: of the computation, "float32" or "bfloat16".
    remat: each block's activations are computed again in the backward pass instead of kept.

    Raises: ValueError for an option that it does not know.
    """

    stages: tuple[int, ...]
    bottleneck: bool = False
    base_width: int = 64
    width: float = 1.0
    stem_width: int = 0
    stem: str = "imagenet"
    zero_init_residual: bool = False
    batch_norm: str = "sync"
    batch_norm_groups: int = 1
    remat: bool = False
    dtype: str = "float32"

    def __post_init__(self):
        check_choice("stem", self.stem, STEMS)
        check_choice("dtype", self.dtype, DTYPES)
        check_options(self.batch_norm, self.batch_norm_groups)
        if self.stage_width(0) < 1:
            raise ValueError(f"width={self.width} leaves no channel of {self.base_width}; use a larger one")
        super().__post_init__()

    @property
    def dim(self) -> int:
        return self.stage_width(len(self.stages) - 1) * (4 if self.bottleneck else 1)

    def stage_width(self, stage: int) -> int:
        return round(self.base_width * self.width) * 2**stage

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        train: bool = False,
        axis_name: str | None = None,
        pool: bool = True,
    ) -> Float[Array, "batch *map dim"]:
        """[batch, dim], or without `pool` the feature map [batch, height', width', dim]."""
        dtype = jnp.dtype(self.dtype)
        size, stride, max_pool = STEMS[self.stem]
        norm = {"kind": self.batch_norm, "groups": self.batch_norm_groups, "dtype": dtype}
        x = convolution(self.stem_width or self.stage_width(0), size, stride, dtype, "conv1")(images.astype(dtype))
        x = nn.relu(BatchNorm(**norm, name="bn1")(x, train, axis_name))
        if max_pool:
            # Its annotation has strings alone; it takes what lax.reduce_window takes.
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]
        block = nn.remat(Block, static_argnums=(2, 3)) if self.remat else Block  # all but x
        for stage, blocks in enumerate(self.stages):
            for i in range(blocks):
                x = block(
                    width=self.stage_width(stage),
                    stride=2 if stage > 0 and i == 0 else 1,
                    bottleneck=self.bottleneck,
                    zero_init_residual=self.zero_init_residual,
                    norm=norm,
                    name=f"layer{stage + 1}_{i}",
                )(x, train, axis_name)
        return jnp.mean(x, axis=(1, 2), dtype=jnp.float32) if pool else x.astype(jnp.float32)


class Block(nn.Module):
    """relu(x + f(x)), f being the convolutions of `sizes`, each but the last followed by BatchNorm and ReLU."""

    width: int
    stride: int
    bottleneck: bool
    zero_init_residual: bool
    norm: Mapping[str, Any]

    @nn.compact
    def __call__(self, x, train, axis_name):
        dtype = self.norm["dtype"]
        # (channels, kernel side, stride) of each convolution
        if self.bottleneck:
            layers = [(self.width, 1, 1), (self.width, 3, self.stride), (4 * self.width, 1, 1)]
        else:
            layers = [(self.width, 3, self.stride), (self.width, 3, 1)]
        y = x
        for i, (channels, size, stride) in enumerate(layers, start=1):
            last = i == len(layers)
            scale_init = nn.initializers.zeros if last and self.zero_init_residual else nn.initializers.ones
            y = convolution(channels, size, stride, dtype, f"conv{i}")(y)
            y = BatchNorm(**self.norm, scale_init=scale_init, name=f"bn{i}")(y, train, axis_name)
            if not last:
                y = nn.relu(y)
        if x.shape != y.shape:
            x = convolution(y.shape[-1], 1, self.stride, dtype, "downsample_0")(x)
            x = BatchNorm(**self.norm, name="downsample_1")(x, train, axis_name)
        return nn.relu(x + y)


def convolution(channels: int, size: int, stride: int, dtype: Any, name: str) -> nn.Module:
    """torchvision's: without bias, initialized for ReLU by the fan-out, padded by half the kernel on every side."""
    return Conv(
        channels,
        (size, size),
        strides=(stride, stride),
        # Not "SAME", which pads less at the top and left where the stride is 2.
        padding=((size // 2, size // 2), (size // 2, size // 2)),
        use_bias=False,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        dtype=dtype,
        name=name,
    )

"""ResNets v1.5: He et al. 2015, arXiv:1512.03385, with a bottleneck's stride in its 3x3 convolution, as in torchvision.

Also wide ResNets (Zagoruyko & Komodakis 2016, arXiv:1605.07146), ResNeXts (Xie et al. 2016, arXiv:1611.05431), and
SimCLRv2's networks (Chen et al. 2020, arXiv:2006.10029): selective kernels (Li et al. 2019, arXiv:1903.06586) with the
stem and shortcuts of ResNet-D (He et al. 2018, arXiv:1812.01187), and features after the projector's first layer.
Modules have torchvision's names, with "_" for "." before a number, so that weights/names.py needs no table of names.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ssl_jax import keys
from ssl_jax.keys import COUNT, NOT_NEGATIVE, POSITIVE, OneOf
from ssl_jax.models._options import DType, Remat
from ssl_jax.models.conv import Conv
from ssl_jax.models.heads import MLP
from ssl_jax.models.hidden import at_size, hide, squares
from ssl_jax.models.norm import BatchNorm, NormGroups, NormKind
from ssl_jax.models.recompute import block_of, group_of

# (side of the kernel, stride, whether a 3x3 max-pool of stride 2 follows)
STEMS = {"imagenet": (7, 2, True), "deep": (3, 2, True), "small": (3, 1, False), "strided": (3, 2, False)}
SK_RATIO, SK_LEAST = 1 / 16, 32  # channels that a selective kernel's mixing weights are computed from: share, minimum


class ResNet(nn.Module):
    """Images [batch, height, width, channels], any size -> features [batch, dim], averaged over positions, float32.

    Raises: ValueError for a value that a field cannot have.
    """

    stages: Annotated[
        tuple[int, ...],
        COUNT,
        "Blocks of each stage. Every stage after the first halves the resolution and doubles the channels.",
    ]
    bottleneck: Annotated[
        bool, "Blocks of 1x1, 3x3 and 1x1 convolutions, with four times the channels out, instead of two of 3x3."
    ] = False
    inner_width: Annotated[
        float,
        POSITIVE,
        "Factor of the channels of a bottleneck's 3x3 convolution alone: 2 for wide_resnet50_2.",
    ] = 1.0
    groups: Annotated[
        int,
        COUNT,
        "Groups of channels in a bottleneck's 3x3 convolution, each of which sees no other: 32 for ResNeXts.",
    ] = 1
    base_width: Annotated[int, COUNT, "Channels of the first stage, before they are multiplied by width."] = 64
    width: Annotated[float, POSITIVE, "Factor of the channels of all stages."] = 1.0
    stem_width: Annotated[int, NOT_NEGATIVE, "Channels of the stem; 0: as many as the first stage has."] = 0
    stem: Annotated[
        str,
        OneOf(tuple(STEMS)),
        "First convolution. imagenet: 7x7 of stride 2, then a max-pool: a quarter of the resolution.",
        "deep: the same resolution, by three convolutions of 3x3, the first two with half the channels (ResNet-D).",
        "small: 3x3, full resolution, for CIFAR. strided: 3x3 of stride 2, for small images on a CPU.",
    ] = "imagenet"
    selective_kernels: Annotated[
        bool,
        "A bottleneck has two 3x3 convolutions, mixed by weights that depend on the image; its shortcut averages "
        "before its 1x1 convolution. As in SimCLRv2, with stem=deep.",
    ] = False
    head_layers: Annotated[
        int,
        NOT_NEGATIVE,
        "Layers after the mean over positions, each linear, as wide as the map, with BatchNorm and ReLU. Features are "
        "taken after them: SimCLRv2 fine-tunes from its projector's first layer.",
    ] = 0
    zero_init_residual: Annotated[
        bool, "The last BatchNorm scale of each block starts at 0, so that the block starts as the identity."
    ] = False
    batch_norm: NormKind = "sync"
    batch_norm_groups: NormGroups = 1
    remat: Remat = "none"
    dtype: DType = "float32"

    def __post_init__(self):
        keys.check_fields(self)
        if self.stage_width(0) < 1:
            raise ValueError(f"width={self.width} leaves no channel of {self.base_width}; use a larger one")
        if not self.bottleneck and (self.inner_width, self.groups) != (1.0, 1):
            raise ValueError(
                f"inner_width={self.inner_width} and groups={self.groups} are of bottlenecks; set bottleneck=True"
            )
        if self.selective_kernels and (not self.bottleneck or self.groups > 1):
            raise ValueError(
                f"selective_kernels=True is of bottlenecks with groups=1, got bottleneck={self.bottleneck}, "
                f"groups={self.groups}; use a model.name such as resnet50"
            )
        if self.inner_channels(0) < 1 or self.inner_channels(0) % self.groups:
            raise ValueError(
                f"groups={self.groups} does not divide the {self.inner_channels(0)} channels of the first stage's 3x3 "
                "convolutions; use a divisor, or another inner_width or width"
            )
        super().__post_init__()

    @property
    def dim(self) -> int:
        return self.stage_width(len(self.stages) - 1) * (4 if self.bottleneck else 1)

    @property
    def stride(self) -> int:
        """Pixels a side of a place of the last stage's map, for images whose sides it divides."""
        _, stride, max_pool = STEMS[self.stem]
        return stride * (2 if max_pool else 1) * 2 ** (len(self.stages) - 1)

    def stage_width(self, stage: int) -> int:
        return round(self.base_width * self.width) * 2**stage

    def inner_channels(self, stage: int) -> int:
        """Channels of the stage's 3x3 convolutions."""
        return round(self.stage_width(0) * self.inner_width) * 2**stage

    def setup(self) -> None:
        if self.head_layers:
            widths = (self.dim,) * self.head_layers
            norm = {"batch_norm": self.batch_norm, "batch_norm_groups": self.batch_norm_groups}
            self.kept_head = MLP(widths, output_norm="full", **norm, dtype=self.dtype)

    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool = False, axis_name: str | None = None
    ) -> Float[Array, "batch dim"]:
        h = jnp.mean(self.stage_maps(images, train, axis_name)[-1], axis=(1, 2), dtype=jnp.float32)
        return nn.relu(self.kept_head(h, train, axis_name)) if self.head_layers else h

    @nn.compact
    def stage_maps(
        self,
        images: Float[Array, "batch height width channels"],
        train: bool = False,
        axis_name: str | None = None,
        *,
        mask: Bool[Array, "batch places"] | None = None,
    ) -> tuple[Float[Array, "batch _ _ _"], ...]:
        """The map of each stage, the largest first, of the type `dtype`.

        mask: row by row over squares of `stride` pixels, True where one is hidden. Nothing of it is seen, and the maps
        are 0 there: see hidden.py. BatchNorm takes its statistics over visible positions. None: everything is seen.

        Raises: ValueError for a mask with selective_kernels, whose means over positions would count hidden ones.
        """
        if mask is not None and self.selective_kernels:
            raise ValueError("selective_kernels=True cannot leave out hidden squares; use selective_kernels=False")
        hidden = None if mask is None else squares(mask, (images.shape[1], images.shape[2]), self.stride)
        images = images if hidden is None else hide(images, at_size(hidden, images.shape[1:3]))
        dtype = jnp.dtype(self.dtype)
        size, stride, max_pool = STEMS[self.stem]
        norm = {"kind": self.batch_norm, "groups": self.batch_norm_groups, "dtype": dtype}
        x, channels, name = images.astype(dtype), self.stem_width or self.stage_width(0), "conv1"
        if self.stem == "deep":  # with timm's names
            for i in (0, 3):
                x = convolution(channels // 2, size, stride if i == 0 else 1, dtype, f"conv1_{i}")(x)
                x = nn.relu(BatchNorm(**norm, name=f"conv1_{i + 1}")(x, train, axis_name, hidden))
            stride, name = 1, "conv1_6"
        x = convolution(channels, size, stride, dtype, name)(x)
        x = nn.relu(BatchNorm(**norm, name="bn1")(x, train, axis_name, hidden))
        if max_pool:
            # Flax annotates padding as a string, but takes all that lax.reduce_window takes.
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]
            # No number is below 0 after a ReLU. So the zeros of hidden positions do not count in a maximum.
            x = x if hidden is None else hide(x, at_size(hidden, x.shape[1:3]))
        run = group_of(ResNet.run_stage, self.remat, constants=(2, 3, 4))
        maps: list[Any] = []
        for stage in range(len(self.stages)):
            x = run(self, x, stage, train, axis_name, hidden)
            maps.append(x)
        return tuple(maps)

    def run_stage(self, x, stage, train, axis_name, hidden):
        """The map after all blocks of a stage; only `stage_maps` calls this."""
        block = block_of(Block, self.remat, constants=(2, 3))  # train and axis_name
        norm = {"kind": self.batch_norm, "groups": self.batch_norm_groups, "dtype": jnp.dtype(self.dtype)}
        for i in range(self.stages[stage]):
            x = block(
                width=self.stage_width(stage),
                inner=self.inner_channels(stage),
                groups=self.groups,
                stride=2 if stage > 0 and i == 0 else 1,
                bottleneck=self.bottleneck,
                selective=self.selective_kernels,
                zero_init_residual=self.zero_init_residual,
                norm=norm,
                name=f"layer{stage + 1}_{i}",
            )(x, train, axis_name, hidden)
        return x

    def feature_map(
        self, images: Float[Array, "batch height width channels"], train: bool = False, axis_name: str | None = None
    ) -> Float[Array, "batch rows columns dim"]:
        """The last stage's map. Its mean over positions is the features, unless there are head_layers."""
        return self.stage_maps(images, train, axis_name)[-1].astype(jnp.float32)


class Block(nn.Module):
    """relu(x + f(x)). f is two or three convolutions, each followed by BatchNorm, and all but the last by a ReLU.

    hidden: None, or bool [batch, square rows, square columns], the hidden squares, where x is 0 and stays so.
    """

    width: int
    inner: int  # channels of the 3x3 convolution of a bottleneck
    groups: int
    stride: int
    bottleneck: bool
    selective: bool  # whether a bottleneck's 3x3 convolution is a SelectiveKernel
    zero_init_residual: bool
    norm: Mapping[str, Any]

    @nn.compact
    def __call__(self, x, train, axis_name, hidden=None):
        dtype = self.norm["dtype"]
        # (channels, kernel side, stride, groups) of each convolution
        if self.bottleneck:
            middle = (self.inner, 3, self.stride, self.groups)
            layers = [(self.inner, 1, 1, 1), middle, (4 * self.width, 1, 1, 1)]
        else:
            layers = [(self.width, 3, self.stride, 1), (self.width, 3, 1, 1)]
        y = x
        for i, (channels, size, stride, groups) in enumerate(layers, start=1):
            last = i == len(layers)
            if self.selective and size == 3:
                y = SelectiveKernel(channels, stride, self.norm, name=f"conv{i}")(y, train, axis_name)
                continue
            scale_init = nn.initializers.zeros if last and self.zero_init_residual else nn.initializers.ones
            y = convolution(channels, size, stride, dtype, f"conv{i}", groups=groups)(y)
            y = BatchNorm(**self.norm, scale_init=scale_init, name=f"bn{i}")(y, train, axis_name, hidden)
            if not last:
                y = nn.relu(y)
        if x.shape != y.shape:
            stride = self.stride
            if self.selective:  # at the lower and right edge of an odd map, the mean of fewer positions
                x = nn.avg_pool(x, (2, 2), (stride, stride), padding="SAME", count_include_pad=False)
                stride = 1
            x = convolution(y.shape[-1], 1, stride, dtype, "downsample_0")(x)
            x = BatchNorm(**self.norm, name="downsample_1")(x, train, axis_name, hidden)
        return nn.relu(x + y)


class SelectiveKernel(nn.Module):
    """Two 3x3 convolutions of a map, each with BatchNorm and ReLU; every channel is a weighted mean of the two.

    The weights are a softmax over the two. They come from the mean over positions of both convolutions' sum, by a layer
    with BatchNorm and ReLU and a linear one. In SimCLRv2 both kernels have 3x3 entries; in the paper of selective
    kernels the second is dilated.

    Source: Li et al. 2019, arXiv:1903.06586, section 3.1, as in SimCLRv2's code (sk_ratio 0.0625).
    """

    channels: int
    stride: int
    norm: Mapping[str, Any]

    @nn.compact
    def __call__(self, x, train, axis_name):
        dtype, middle = self.norm["dtype"], max(int(self.channels * SK_RATIO), SK_LEAST)
        y = convolution(2 * self.channels, 3, self.stride, dtype, "conv")(x)
        y = nn.relu(BatchNorm(**self.norm, name="bn")(y, train, axis_name))
        y = y.reshape(*y.shape[:-1], 2, self.channels)
        pooled = jnp.mean(jnp.sum(y, axis=-2), axis=(1, 2), keepdims=True)
        pooled = convolution(middle, 1, 1, dtype, "fc1", kernel_init=fan_in_init)(pooled)
        pooled = nn.relu(BatchNorm(**self.norm, name="fc1_bn")(pooled, train, axis_name))
        scores = convolution(2 * self.channels, 1, 1, dtype, "fc2", kernel_init=fan_in_init)(pooled)
        mixing = nn.softmax(scores.reshape(-1, 1, 1, 2, self.channels), axis=-2)
        return jnp.sum(y * mixing, axis=-2)


fan_in_init = nn.initializers.lecun_normal()
he_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def convolution(
    channels: int, size: int, stride: int, dtype: Any, name: str, *, groups: int = 1, kernel_init: Any = he_init
) -> nn.Module:
    """As in torchvision: no bias, initialized for ReLU by the fan-out, padded by half the kernel on every side."""
    return Conv(
        channels,
        (size, size),
        strides=(stride, stride),
        # Not "SAME": with a stride of 2 it pads less at the top and left.
        padding=((size // 2, size // 2), (size // 2, size // 2)),
        feature_group_count=groups,
        use_bias=False,
        kernel_init=kernel_init,
        dtype=dtype,
        name=name,
    )

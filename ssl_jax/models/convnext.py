"""ConvNeXt (Liu et al. 2022, arXiv:2201.03545) and ConvNeXt V2 (Woo et al. 2023, arXiv:2301.00808), as in timm.

Modules have timm's names, with "_" for "." before a number, so that weights.py needs no table of names. Weights start
as in the authors' code and timm: normal of deviation 0.02, biases 0.
"""

from typing import Annotated, Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ssl_jax import keys, ops
from ssl_jax.keys import COUNT, NOT_NEGATIVE, OneOf, Range
from ssl_jax.models import stochastic_depth
from ssl_jax.models._options import BranchDType, Remat
from ssl_jax.models.blocks import dense, layer_norm, weight_init
from ssl_jax.models.conv import Conv
from ssl_jax.models.hidden import at_size, hide, squares
from ssl_jax.models.recompute import block_of, group_of
from ssl_jax.ops.shards import gather_all, has_shards

POOLS = ("mean", "norm_mean")
KERNEL = 7  # side of the depthwise convolutions


class ConvNeXt(nn.Module):
    """Images [batch, height, width, channels] -> features [batch, dim], float32.

    The stem takes patch_size x patch_size pixels to one position, and each later stage takes 2x2 positions to one.
    Pixels and positions at the right and bottom that do not fill one are left out, as in timm.

    With drop_path, training needs a key: apply(..., rngs={"dropout": key}).

    Raises: ValueError for a value that a field cannot have; in a call, for images too small for the stages.
    """

    stages: Annotated[
        tuple[int, ...],
        COUNT,
        "Blocks of each stage. Every stage after the first halves the resolution and doubles the channels.",
    ]
    base_width: Annotated[int, COUNT, "Channels of the first stage."]
    patch_size: Annotated[
        int, COUNT, "Side and stride of the first convolution in pixels. 4 for ImageNet; 1 or 2 for small images."
    ] = 4
    layer_scale: Annotated[
        float,
        NOT_NEGATIVE,
        "Start value of the learned vector that multiplies each block's branch (LayerScale, arXiv:2103.17239);",
        "0: no vector, as in V2.",
    ] = 1e-6
    grn: Annotated[
        bool, "Global response normalization in the middle of each block (V2): channels compete for their strength."
    ] = False
    conv_mlp: Annotated[
        bool,
        "Keeps the weights of linear layers as those of 1x1 convolutions. Results are the same; timm's files of the",
        "models from atto to nano have them so.",
    ] = False
    pool: Annotated[
        str,
        OneOf(POOLS),
        "What the features are. mean: the mean over positions, followed by the LayerNorm.",
        "norm_mean: the mean over positions after the LayerNorm (timm's head_norm_first, and VICRegL's ConvNeXt).",
    ] = "mean"
    drop_path: Annotated[
        float,
        Range(0.0, 1.0, below=True),
        "Probability, in training, that an image skips the branch of the last block (arXiv:1603.09382). It grows",
        "linearly from 0 at the first block. The paper has 0.1 for tiny, 0.4 for small and 0.5 for base and large.",
    ] = 0.0
    remat: Remat = "none"
    dtype: BranchDType = "float32"

    def __post_init__(self):
        keys.check_fields(self)
        super().__post_init__()

    @property
    def dim(self) -> int:
        return self.base_width * 2 ** (len(self.stages) - 1)

    @property
    def stride(self) -> int:
        """Pixels a side of a place of the last stage's map."""
        return self.patch_size * 2 ** (len(self.stages) - 1)

    @property
    def drop_rates(self) -> list[float]:
        """Probability of each block that an image skips its branch."""
        blocks = sum(self.stages)
        return stochastic_depth.growing(self.drop_path, blocks)

    def setup(self) -> None:
        if self.pool == "norm_mean":
            self.norm_pre = layer_norm(jnp.float32, None)
        else:
            self.head = Head()

    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool = False, axis_name: str | None = None
    ) -> Float[Array, "batch dim"]:
        return self.features_and_map(images, train, axis_name)[0]

    @nn.compact
    def stage_maps(
        self,
        images: Float[Array, "batch height width channels"],
        train: bool = False,
        axis_name: str | None = None,
        *,
        mask: Bool[Array, "batch places"] | None = None,
    ) -> tuple[Float[Array, "batch _ _ _"], ...]:
        """The map of each stage, the largest first, as its blocks give it: no LayerNorm follows.

        mask: row by row over squares of `stride` pixels, True where one is hidden. Nothing of it is seen, and the maps
        are 0 there: see hidden.py. GRN takes its norms over visible positions. None: everything is seen.
        """
        check_size(self, images.shape[1:3])
        hidden = None if mask is None else squares(mask, (images.shape[1], images.shape[2]), self.stride)
        dtype, blocks = jnp.dtype(self.dtype), sum(self.stages)
        drops: list[Any] = [None] * blocks
        if train and self.drop_path > 0.0 and not self.is_initializing():
            noise = stochastic_depth.draw(self.make_rng("dropout"), len(images), blocks, 1, axis_name)
            drops = stochastic_depth.factors(noise, self.drop_rates)
        x = patches(self.base_width, self.patch_size, dtype, "stem_0")(images.astype(dtype))
        x = layer_norm(jnp.float32, "stem_1")(x)
        x = x if hidden is None else hide(x, at_size(hidden, x.shape[1:3]))
        maps: list[Any] = []
        options = dict(layer_scale=self.layer_scale, grn=self.grn, conv_mlp=self.conv_mlp, dtype=dtype)
        for stage, count in enumerate(self.stages):
            first = sum(self.stages[:stage])
            made = Stage(self.base_width * 2**stage, stage > 0, self.remat, options, name=f"stages_{stage}")
            x = group_of(Stage.__call__, self.remat)(made, x, drops[first : first + count], hidden)
            maps.append(x)
        return tuple(maps)

    def feature_map(
        self, images: Float[Array, "batch height width channels"], train: bool = False, axis_name: str | None = None
    ) -> Float[Array, "batch rows columns dim"]:
        """The last stage's map, each position normalized by the last LayerNorm.

        With pool="norm_mean", its mean over positions is the features. With pool="mean" the same LayerNorm gives the
        features from the mean before it, as DINOv3's ConvNeXts have it for their patches and their class token
        (arXiv:2508.10104).
        """
        return self.features_and_map(images, train, axis_name)[1]

    def features_and_map(
        self, images: Float[Array, "batch height width channels"], train: bool = False, axis_name: str | None = None
    ) -> tuple[Float[Array, "batch dim"], Float[Array, "batch rows columns dim"]]:
        """(features, feature map) in one pass."""
        x = self.stage_maps(images, train, axis_name)[-1]
        if self.pool == "norm_mean":
            places = self.norm_pre(x)
            return jnp.mean(places, axis=(1, 2)), places
        return self.head(jnp.mean(x, axis=(1, 2))), self.head(x)


def check_size(model: ConvNeXt, size: tuple[int, ...]) -> None:
    """Raises: ValueError for images (height, width) of which no position is left in the last stage.

    Not a method: Flax wraps methods as parts of the forward pass, which fails in __post_init__.
    """
    least = model.stride
    if min(size) < least:
        raise ValueError(
            f"an image of {size[0]}x{size[1]} pixels is too small for {len(model.stages)} stages after patches of "
            f"{model.patch_size}: sides must be at least {least}; choose a smaller model.patch_size or fewer "
            "model.stages"
        )


class Stage(nn.Module):
    """[batch, rows, columns, channels] -> [batch, rows, columns, width], or half the rows and columns where it halves.

    drops: for each block, a factor for each image's branch [batch, 1], or None. hidden: None, or bool
    [batch, square rows, square columns], the hidden squares, where x is 0 and stays so.
    """

    width: int
    halves: bool
    remat: str
    options: Any  # of Block

    @nn.compact
    def __call__(self, x, drops, hidden=None):
        dtype = self.options["dtype"]
        positions = None
        if self.halves:
            x = layer_norm(dtype, "downsample_0")(x)
            x = patches(self.width, 2, dtype, "downsample_1")(x).astype(jnp.float32)
        if hidden is not None:
            positions = at_size(hidden, x.shape[1:3])
            x = hide(x, positions)
        block = block_of(Block, self.remat)
        for i, drop in enumerate(drops):
            x = block(**self.options, name=f"blocks_{i}")(x, drop, positions)
        return x


class Block(nn.Module):
    """x + f(x); x [batch, rows, columns, dim] is float32 whatever `dtype` is.

    f: a 7x7 convolution of each channel, LayerNorm over channels, and an MLP of each position.
    drop: a factor for each image's branch [batch, 1]; None: 1. hidden: None, or bool [batch, rows, columns], where x is
    0 and stays so. Parameters that are shards (see ops.shards) are gathered here.
    """

    layer_scale: float
    grn: bool
    conv_mlp: bool
    dtype: Any

    @nn.compact
    def __call__(self, x, drop=None, hidden=None):
        if has_shards(self.variables):
            return nn.map_variables(Block.add_branch, "params", gather_all)(self, x, drop, hidden)
        return self.add_branch(x, drop, hidden)

    def add_branch(self, x, drop, hidden):
        dim, around = x.shape[-1], (KERNEL // 2, KERNEL // 2)
        y = Conv(
            dim,
            (KERNEL, KERNEL),
            padding=(around, around),
            feature_group_count=dim,
            kernel_init=weight_init,
            dtype=self.dtype,
            name="conv_dw",
        )(x.astype(self.dtype))
        y = layer_norm(self.dtype, "norm")(y)
        y = FeedForward(self.grn, self.conv_mlp, self.dtype, name="mlp")(y, hidden).astype(jnp.float32)
        if self.layer_scale:
            y *= self.param("gamma", nn.initializers.constant(self.layer_scale), (dim,), jnp.float32)
        y = hide(y, hidden)
        return x + (y if drop is None else y * drop[..., None, None])


class FeedForward(nn.Module):
    grn: bool
    conv_mlp: bool
    dtype: Any

    @nn.compact
    def __call__(self, x, hidden):
        linear = pointwise if self.conv_mlp else dense
        y = ops.gelu(linear(4 * x.shape[-1], self.dtype, "fc1")(x))
        y = GRN(name="grn")(y, hidden) if self.grn else y
        return linear(x.shape[-1], self.dtype, "fc2")(y)


class GRN(nn.Module):
    """x + scale * x * n + bias; x [batch, rows, columns, dim].

    n is the Euclidean norm of a channel over all positions that are not hidden, divided by the mean of these norms over
    the channels. Norms are computed in float32. Source: ConvNeXt V2, arXiv:2301.00808, algorithm 1; scale and bias
    start at 0.
    """

    eps: float = 1e-6

    @nn.compact
    def __call__(self, x, hidden=None):
        scale, bias = (self.param(name, nn.initializers.zeros, x.shape[-1:], jnp.float32) for name in ("scale", "bias"))
        y = x.astype(jnp.float32)
        total = jnp.sum(hide(y * y, hidden), axis=(1, 2), keepdims=True)
        # The root's gradient at 0 is infinite, and would be NaN for a channel that is 0 everywhere.
        norms = jnp.where(total > 0.0, jnp.sqrt(jnp.where(total > 0.0, total, 1.0)), 0.0)
        return (y + scale * (y * norms / (jnp.mean(norms, axis=-1, keepdims=True) + self.eps)) + bias).astype(x.dtype)


class Head(nn.Module):
    """The LayerNorm of the features, which timm has in the classifier's module."""

    @nn.compact
    def __call__(self, x):
        return layer_norm(jnp.float32, "norm")(x)


def patches(channels: int, side: int, dtype: Any, name: str) -> nn.Module:
    """A linear map of each patch of side x side positions."""
    return Conv(channels, (side, side), (side, side), padding="VALID", kernel_init=weight_init, dtype=dtype, name=name)


def pointwise(channels: int, dtype: Any, name: str) -> nn.Module:
    """`dense` with a kernel of four dimensions."""
    return patches(channels, 1, dtype, name)

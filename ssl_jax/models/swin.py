"""Swin transformers (Liu et al. 2021, arXiv:2103.14030), as in timm.

Modules have timm's names, with "_" for "." before a number, so that weights.py needs no table of names.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ssl_jax import keys
from ssl_jax.keys import COUNT, POSITIVE, Range
from ssl_jax.models import stochastic_depth
from ssl_jax.models._options import BranchDType, Remat
from ssl_jax.models.blocks import Attention, FeedForward, PatchEmbed, add_branch, layer_norm, weight_init
from ssl_jax.models.dense import Dense
from ssl_jax.models.hidden import at_size, squares
from ssl_jax.models.patches import from_tiles, to_tiles
from ssl_jax.models.positions import patch_grid, relative_index
from ssl_jax.models.recompute import block_of, group_of
from ssl_jax.ops.shards import gather_all, has_shards

EPSILON = 1e-5  # of each LayerNorm

Pair = tuple[int, int]  # (down, across)


class Swin(nn.Module):
    """Images [batch, height, width, channels], sides multiples of patch_size -> features [batch, dim], float32.

    Features are the mean over positions after the last LayerNorm. A map that windows do not fill is padded with zeros
    at the right and the bottom; they take part in attention, as in timm. With drop_path, training needs a key:
    apply(..., rngs={"dropout": key}).

    The first weights are those of timm 1.0.31 (models/swin_transformer.py): the patch projection's kernel as torch
    draws it, all other kernels and the tables of positions normal of deviation 0.02, biases 0.

    Raises: ValueError for a value that a field cannot have, or for fields that do not go together.
    """

    base_width: Annotated[int, COUNT, "Channels of the first stage, a multiple of head_width."]
    stages: Annotated[
        tuple[int, ...],
        COUNT,
        "Blocks of each stage. Every stage after the first halves the resolution and doubles the channels.",
    ]
    head_width: Annotated[int, COUNT, "Channels of an attention head."] = 32
    window: Annotated[
        int,
        COUNT,
        "Side of the windows within which places attend to each other, in places of a stage's map. Every second block",
        "shifts them by half a window.",
    ] = 7
    mlp_ratio: Annotated[float, POSITIVE, "Width of the MLP's hidden layer over the stage's channels."] = 4.0
    patch_size: Annotated[int, COUNT, "Side of a patch in pixels, which is a place of the first stage's map."] = 4
    image_size: Annotated[
        int | tuple[int, int],
        COUNT,
        "Pixels of the images that windows are made for: (height, width), or a square's side. Where a stage's map of",
        "such an image is not larger than a window, its windows are as large as the map and are not shifted.",
        "Images of other sizes keep these windows.",
    ] = 224
    drop_path: Annotated[
        float,
        Range(0.0, 1.0, below=True),
        "Probability, in training, that an image skips each branch of the last block (arXiv:1603.09382).",
        "It grows linearly from 0 at the first block.",
    ] = 0.0
    remat: Remat = "none"
    dtype: BranchDType = "float32"

    def __post_init__(self):
        keys.check_fields(self)
        if self.base_width % self.head_width:
            raise ValueError(f"base_width={self.base_width} must be a multiple of head_width={self.head_width}")
        self.windows  # noqa: B018  refuses an impossible image_size
        super().__post_init__()

    @property
    def dim(self) -> int:
        return self.base_width * 2 ** (len(self.stages) - 1)

    @property
    def stride(self) -> int:
        """Pixels a side of a place of the feature map, for images whose sides it divides."""
        return self.patch_size * 2 ** (len(self.stages) - 1)

    @property
    def token_dim(self) -> int:
        """Channels of the token that stands in for hidden patches."""
        return self.base_width

    @property
    def windows(self) -> list[tuple[Pair, Pair]]:
        """(size of a window, its shift in every second block) of each stage."""
        size = self.image_size
        grid = patch_grid((size, size) if isinstance(size, int) else size, self.patch_size)
        return stage_windows(grid, len(self.stages), self.window)

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        train: bool = False,
        axis_name: str | None = None,
        *,
        hide: tuple[Bool[Array, "batch places"], Float[Array, " token_dim"]] | None = None,
        pool: bool = True,
    ) -> Float[Array, "batch *map dim"]:
        """Features [batch, dim]; without `pool` the feature map [batch, rows, columns, dim].

        hide: mask and mask_token of `masked_map`.

        Raises: ValueError for an image that patches do not fill, and with a mask for one that its squares do not fill.
        """
        dtype = jnp.dtype(self.dtype)
        _, height, width, _ = images.shape
        grid = patch_grid((height, width), self.patch_size)
        x = NormedPatchEmbed(self.base_width, self.patch_size, dtype, name="patch_embed")(images.astype(dtype))
        if hide is not None:
            mask, mask_token = hide
            hidden = at_size(squares(mask, (height, width), self.stride), grid)
            x = jnp.where(hidden.reshape(len(x), -1, 1), mask_token, x)
        blocks = sum(self.stages)
        drops: Any = [None] * blocks
        if train and self.drop_path > 0.0 and not self.is_initializing():
            noise = stochastic_depth.draw(self.make_rng("dropout"), len(x), blocks, 2, axis_name)
            drops = stochastic_depth.factors(noise, stochastic_depth.growing(self.drop_path, blocks))
        first = 0
        for i, (depth, (window, shift)) in enumerate(zip(self.stages, self.windows, strict=True)):
            channels = self.base_width * 2**i
            options = dict(
                heads=channels // self.head_width,
                mlp_width=round(self.mlp_ratio * channels),
                window=window,
                dtype=dtype,
            )
            stage = Stage(options, shift, grid, merge=i > 0, remat=self.remat, name=f"layers_{i}")
            x = group_of(Stage.__call__, self.remat)(stage, x, drops[first : first + depth])
            grid, first = stage.out_grid, first + depth
        x = layer_norm(jnp.float32, "norm", EPSILON)(x)
        return jnp.mean(x, axis=1) if pool else x.reshape(len(x), *grid, self.dim)

    def feature_map(
        self, images: Float[Array, "batch height width channels"], train: bool = False, axis_name: str | None = None
    ) -> Float[Array, "batch rows columns dim"]:
        """The last stage's map after the last LayerNorm. Its mean over positions is the features."""
        return self(images, train, axis_name, pool=False)

    def masked_map(
        self,
        images: Float[Array, "batch height width channels"],
        train: bool = False,
        axis_name: str | None = None,
        *,
        mask: Bool[Array, "batch places"],
        mask_token: Float[Array, " token_dim"],
    ) -> Float[Array, "batch rows columns dim"]:
        """The feature map of images that are partly hidden, as in SimMIM (arXiv:2111.09886).

        mask: row by row over squares of `stride` pixels, of which each is one place of the map. Where it is True,
        mask_token replaces the square's patches after their LayerNorm.
        """
        return self(images, train, axis_name, hide=(mask, mask_token), pool=False)


def stage_windows(grid: Pair, stages: int, window: int) -> list[tuple[Pair, Pair]]:
    """(size of a window, its shift) of each stage, for images of this grid of patches. window: the largest side."""
    found: list[tuple[Pair, Pair]] = []
    for stage in range(stages):
        rows, columns = (max(side // 2**stage, 1) for side in grid)
        shift_rows, shift_columns = (0 if side <= window else window // 2 for side in (rows, columns))
        found.append(((min(rows, window), min(columns, window)), (shift_rows, shift_columns)))
    return found


def options_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """`Swin`'s options that can be told from the shapes of its tensors, by torch's names, if it has four stages and
    square windows.

    Of several image sizes with these windows it is the smallest: 224 pixels where all windows are 7, 384 where they are
    12, as timm's models have it.
    """
    tables = [shapes.get(f"layers.{stage}.blocks.0.attn.relative_position_bias_table", ()) for stage in range(4)]
    patch = shapes.get("patch_embed.proj.weight", ())
    if not patch or not all(tables):
        return {}
    sides = [round(offsets**0.5 + 1) // 2 for offsets, *_ in tables]  # a table has (2 side - 1)^2 offsets
    if [(2 * side - 1) ** 2 for side in sides] == [offsets for offsets, *_ in tables]:
        for side in range(1, 8 * sides[0] + 1):
            if [size for size, _ in stage_windows((side, side), 4, sides[0])] == [(side, side) for side in sides]:
                return {"patch_size": patch[-1], "window": sides[0], "image_size": side * patch[-1]}
    return {}


class NormedPatchEmbed(PatchEmbed):
    """images -> [batch, patches, dim], float32: one linear map of each patch's pixels, then LayerNorm."""

    @nn.compact
    def __call__(self, images):
        return layer_norm(jnp.float32, "norm", EPSILON)(super().__call__(images))


class Stage(nn.Module):
    """x [batch, places, channels], the places of a map row by row -> the same after the stage's blocks.

    grid: (rows, columns) of the map. merge: whether the stage begins with merging 2x2 places. options: of `Block`.
    """

    options: Mapping[str, Any]
    shift: Pair
    grid: Pair
    merge: bool
    remat: str

    @property
    def out_grid(self) -> Pair:
        rows, columns = self.grid
        return (-(-rows // 2), -(-columns // 2)) if self.merge else self.grid

    @nn.compact
    def __call__(self, x, drops):
        if self.merge:
            x = PatchMerging(self.grid, self.options["dtype"], name="downsample")(x)
        block = block_of(Block, self.remat)
        for i, drop in enumerate(drops):
            shift = self.shift if i % 2 else (0, 0)
            x = block(**self.options, grid=self.out_grid, shift=shift, name=f"blocks_{i}")(x, drop)
        return x


class PatchMerging(nn.Module):
    """2x2 places become one of twice the channels; odd maps are padded with zeros at the right and the bottom."""

    grid: Pair
    dtype: Any

    @nn.compact
    def __call__(self, x):
        batch, _, channels = x.shape
        x = pad_map(x.reshape(batch, *self.grid, channels), (2, 2))
        _, rows, columns, _ = x.shape
        x = x.reshape(batch, rows // 2, 2, columns // 2, 2, channels)
        x = x.transpose(0, 1, 3, 4, 2, 5).reshape(batch, -1, 4 * channels)  # not as to_tiles: column by column
        x = layer_norm(self.dtype, "norm", EPSILON)(x)
        x = Dense(2 * channels, use_bias=False, kernel_init=weight_init, dtype=self.dtype, name="reduction")(x)
        return x.astype(jnp.float32)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); x [batch, places, channels] is float32 whatever `dtype` is.

    grid: (rows, columns) of the map whose places are x. Attention is within windows of size `window` that are moved by
    `shift` places down and across. drop: None, or float [batch, 2], the factor of each image's branch, as from
    `stochastic_depth.factors`.
    Parameters that are shards (see ops.shards) are gathered here.
    """

    heads: int
    mlp_width: int
    grid: Pair
    window: Pair
    shift: Pair
    dtype: Any

    @nn.compact
    def __call__(self, x, drop=None):
        if has_shards(self.variables):
            return nn.map_variables(Block.branches, "params", gather_all)(self, x, drop)
        return self.branches(x, drop)

    def branches(self, x, drop):
        def attention(x, _):
            y = layer_norm(self.dtype, "norm1", EPSILON)(x).reshape(len(x), *self.grid, -1)
            y = pad_map(jnp.roll(y, tuple(-side for side in self.shift), (1, 2)), self.window)
            _, height, width, channels = y.shape
            tiles = to_tiles(y, self.window).reshape(-1, self.window[0] * self.window[1], channels)
            attend = None
            if any(self.shift):
                attend = jnp.tile(same_region((height, width), self.window, self.shift), (len(x), 1, 1))
            tiles = WindowAttention(self.heads, self.dtype, window=self.window, name="attn")(tiles, attend)
            y = from_tiles(tiles.reshape(len(x), -1, tiles.shape[1] * channels), (height, width), self.window)
            y = jnp.roll(y[:, : self.grid[0], : self.grid[1]], self.shift, (1, 2))
            return y.reshape(x.shape).astype(jnp.float32)

        def feed_forward(x, _):
            y = layer_norm(self.dtype, "norm2", EPSILON)(x)
            return FeedForward(self.mlp_width, self.dtype, name="mlp")(y).astype(jnp.float32)

        first, second = (None, None) if drop is None else drop.swapaxes(0, 1)
        x = add_branch(x, attention, first, None)
        return add_branch(x, feed_forward, second, None)


class WindowAttention(Attention):
    """Attention among the places of each window, x [windows, places, dim], with a learned bias for each offset."""

    window: Pair = (7, 7)

    @nn.compact
    def __call__(self, x, attend):
        index = relative_index(self.window, class_token=False)
        shape = (int(index.max()) + 1, self.heads)
        table = self.param("relative_position_bias_table", weight_init, shape, jnp.float32)
        return super().__call__(x, attend, table[index].transpose(2, 0, 1)[None], None)


def pad_map(x: Float[Array, "batch rows columns dim"], tile: Pair) -> Float[Array, "batch _ _ dim"]:
    """The map with zeros at the bottom and the right, so that tiles of this size fill it."""
    down, across = (-side % of for side, of in zip(x.shape[1:3], tile, strict=True))
    return jnp.pad(x, ((0, 0), (0, down), (0, across), (0, 0)))


def same_region(size: Pair, window: Pair, shift: Pair) -> Bool[np.ndarray, "windows places places"]:
    """Which places of each window attend to each other, in a map of `size` that was rolled by -shift.

    Rolling brings the first rows and columns behind the last ones. They attend to those that came with them alone.
    """
    rows, columns = (np.arange(side) >= side - by for side, by in zip(size, shift, strict=True))
    region = (2 * rows[:, None] + columns).reshape(-1, window[0], size[1] // window[1], window[1])
    region = region.swapaxes(1, 2).reshape(-1, window[0] * window[1])
    return region[:, :, None] == region[:, None, :]

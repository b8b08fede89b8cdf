"""Vision transformers (Dosovitskiy et al. 2020, arXiv:2010.11929), as in timm.

Modules have timm's names, with "_" for "." before a number, so that weights/names.py needs no table of names.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ssl_jax import keys
from ssl_jax.keys import COUNT, NOT_NEGATIVE, POSITIVE, OneOf, Range
from ssl_jax.models import stochastic_depth, vit_blocks
from ssl_jax.models._options import BranchDType, Remat
from ssl_jax.models.attention import AttentionKind
from ssl_jax.models.blocks import MLPS, NORMS, NormParams, PatchEmbed, make_norm, normed_by, weight_init
from ssl_jax.models.positions import (
    RelativePositions,
    Rope,
    patch_grid,
    resize_positions,
    rope_rotations,
    sincos_positions,
)

POOLS = ("cls", "mean", "norm_mean")
POSITIONS = ("learned", "sincos", "relative", "rope")


class ViT(nn.Module):
    """Images [batch, height, width, channels], sides multiples of patch_size -> features [batch, dim], float32.

    With drop_path or rope_jitter, training needs a key: apply(..., rngs={"dropout": key}).

    Raises: ValueError for a value that a field cannot have, or for fields that do not go together.
    """

    dim: Annotated[int, COUNT, "Width of a token, a multiple of 4 and of heads."]
    heads: Annotated[int, COUNT, "Attention heads of a block."]
    depth: Annotated[int, COUNT, "Number of blocks."] = 12
    mlp: Annotated[
        str,
        OneOf(MLPS),
        "Hidden layer of each block's MLP. gelu: mlp_ratio * dim wide. quick_gelu: the same with x * sigmoid(1.702 x),",
        "as in OpenAI's CLIP.",
        "swiglu: half as wide, the product of a linear map's SiLU and another linear map",
        "(Shazeer 2020, arXiv:2002.05202, as timm's SwiGLUPacked).",
    ] = "gelu"
    mlp_ratio: Annotated[float, POSITIVE, "Width of the MLP's hidden layer over dim; see mlp."] = 4.0
    patch_size: Annotated[int, COUNT, "Side of a patch in pixels."] = 16
    image_size: Annotated[
        int | tuple[int, int],
        COUNT,
        "Pixels of the images that learned and relative positions are made for: (height, width), or a square's side.",
        "Learned positions are interpolated for images of another size.",
    ] = 224
    positions: Annotated[
        str,
        OneOf(POSITIONS),
        "Positions of the patches. learned: for image_size. sincos: fixed, for the grid of any image.",
        "relative: none are added; all blocks share one learned bias of attention for each offset of two patches, and",
        "images must have image_size (BEiT, arXiv:2106.08254). rope: none are added; each block rotates queries and",
        "keys by their patch's place in the image, for any image (DINOv3, arXiv:2508.10104).",
    ] = "learned"
    rope_base: Annotated[float, POSITIVE, "Base of the periods of rope; the longest is nearly as long."] = 100.0
    rope_jitter: Annotated[
        float,
        Range(1.0),
        "In training, the places of rope are multiplied by a factor between 1 / rope_jitter and rope_jitter, drawn for",
        "each batch, uniformly in its logarithm. 1: by none. DINOv3 has 2.",
    ] = 1.0
    pool: Annotated[
        str,
        OneOf(POOLS),
        "What the features are. cls: the class token after the last LayerNorm.",
        "mean: the mean over patches, followed by the LayerNorm, as in timm.",
        "norm_mean: the mean over patches after the LayerNorm.",
    ] = "cls"
    class_token: Annotated[
        bool, "Puts a class token before the patches. Without it, pool must be one of the means."
    ] = True
    class_position: Annotated[bool, "The class token has a learned position, too, where positions are learned."] = True
    registers: Annotated[
        int,
        NOT_NEGATIVE,
        "Learned tokens after the class token that are no part of the features (arXiv:2309.16588).",
    ] = 0
    pre_norm: Annotated[
        bool, "LayerNorm before the first block, and no bias in the patch embedding, as in CLIP (arXiv:2103.00020)."
    ] = False
    norm_kind: Annotated[
        str,
        OneOf(NORMS),
        "What is meant by LayerNorm in all of these keys. layer: LayerNorm. rms: RMSNorm, which subtracts no mean and",
        "has no offset (arXiv:1910.07467), as in CAPI and AIMv2.",
    ] = "layer"
    norm_eps: Annotated[float, POSITIVE, "Added to the variance in every LayerNorm."] = 1e-6
    qkv_bias: Annotated[bool, "Queries, keys and values have a bias."] = True
    bias: Annotated[bool, "The other linear layers of the blocks have a bias: attention's last one, the MLP's."] = True
    qk_norm: Annotated[
        bool, "LayerNorm of each head's queries and keys, for training that stays stable (arXiv:2302.05442)."
    ] = False
    layer_scale: Annotated[
        float,
        NOT_NEGATIVE,
        "Start value of the learned vector that multiplies each branch (LayerScale, arXiv:2103.17239); 0: no vector.",
    ] = 0.0
    drop_path: Annotated[
        float,
        Range(0.0, 1.0, below=True),
        "Probability, in training, that an image skips each branch of the last block (arXiv:1603.09382).",
        "It grows linearly from 0 at the first block, unless drop_path_uniform is set.",
    ] = 0.0
    drop_path_uniform: Annotated[bool, "All blocks have the probability drop_path."] = False
    drop_path_group: Annotated[
        int,
        NOT_NEGATIVE,
        "0: each image is drawn on its own; a branch that it skips is computed, and multiplied by 0.",
        "Above 0: among this many images in a row, a fixed number skips each branch, which is not computed for them,",
        "forward or backward (as in DINOv2, whose group is the views of a device). The group must divide a device's",
        "images and microbatch; then results do not depend on the number of devices.",
    ] = 0
    attention: AttentionKind = "auto"
    remat: Remat = "none"
    scan: Annotated[
        bool,
        "In training, the blocks are one loop, so that a deep model compiles in the time of one block.",
        "Set remat, too: without it the loop keeps all that its backward pass needs.",
    ] = False
    microbatch: Annotated[
        int,
        NOT_NEGATIVE,
        "In training, the blocks take this many images at a time, forward and again backward, so only their",
        "activations are in memory; 0: all images at once. Results are the same for every loss: only the blocks do",
        "not see the whole batch (for contrastive losses this is known as GradCache, arXiv:2101.06983).",
    ] = 0
    dtype: BranchDType = "float32"

    def __post_init__(self):
        keys.check_fields(self)
        if self.mlp == "swiglu" and round(self.mlp_ratio * self.dim) % 2:
            raise ValueError(f"swiglu halves mlp_ratio * dim, which must be even, got {self.mlp_ratio} * {self.dim}")
        if self.dim % self.heads or self.dim % 4:
            raise ValueError(f"dim={self.dim} must be a multiple of 4 and of heads={self.heads}")
        if self.pool == "cls" and not self.class_token:
            raise ValueError('pool="cls" needs class_token; without it use pool="norm_mean"')
        if self.positions == "rope" and self.dim // self.heads % 4:
            raise ValueError(f"rope needs heads whose width is a multiple of 4, got dim={self.dim}, heads={self.heads}")
        if self.positions == "relative" and self.registers:
            raise ValueError('relative positions have none for registers; use positions="rope" or registers=0')
        check_group(self)
        self.learned_grid  # noqa: B018  refuses an impossible image_size
        super().__post_init__()

    @property
    def learned_grid(self) -> tuple[int, int]:
        size = self.image_size
        return patch_grid((size, size) if isinstance(size, int) else size, self.patch_size)

    @property
    def sizes_together(self) -> bool:
        """Whether images of several sizes may pass the blocks together; see `tokens`."""
        return not self.microbatch

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width channels"] | tuple[Float[Array, "_ _ _ channels"], ...],
        train: bool = False,
        axis_name: str | None = None,
        *,
        mask: Bool[Array, "batch patches"] | tuple[Bool[Array, "_ _"] | None, ...] | None = None,
        mask_token: Float[Array, " dim"] | None = None,
        prefix_norm: NormParams | tuple[NormParams | None, ...] | None = None,
        keep: Int[Array, "batch kept"] | None = None,
        attend: Bool[Array, "#batch #queries #keys"] | None = None,
        tokens: bool = False,
        last_blocks: int = 0,
    ) -> Any:
        """Features [batch, dim].

        With `tokens`: all tokens after the last LayerNorm, [batch, num_prefix + patches, dim]: the class token if there
        is one, registers, patches. With `last_blocks`: all tokens after each of that many last blocks, [batch,
        last_blocks, num_prefix + patches, dim]; depth + 1 begins with the tokens that enter the first block.

        Args:
          images: or a tuple of images of several sizes, which pass each block side by side. Then blocks that are shards
            are gathered once for all sizes, and their gradient is sent once. The result is a tuple, and `mask` and
            `prefix_norm` may be. The second size draws from the random stream "dropout1", the third from "dropout2",
            and so on.
          mask, mask_token: where `mask` is True, the token replaces the patch's embedding, before positions are added
            (as in BERT).
          prefix_norm: "scale" and "bias" [dim] of a LayerNorm that is the last of the class token and the registers, in
            place of the model's own. With `tokens` only.
          keep: indices of the patches that enter the blocks, in this order; the others are left out (MAE).
          attend: True where a query may attend to a key, in every block; broadcast to [batch, tokens, tokens]. Tokens
            are those that enter the blocks, in the order of `tokens`. None: all attend to all. A query that may attend
            to nothing gets the mean of all values.
        Raises: ValueError for an image that patches do not fill, or options that do not go together.
        """
        if keep is not None and self.positions == "relative":
            raise ValueError('leaving patches out needs a position for each patch; use model.positions="sincos"')
        several = isinstance(images, tuple)
        if several and (self.microbatch or keep is not None or attend is not None or last_blocks):
            raise ValueError("images of several sizes go together without microbatch, keep, attend and last_blocks")
        if prefix_norm is not None and not tokens:
            raise ValueError("prefix_norm is of the tokens before the patches; ask for them by tokens=True")
        if last_blocks > self.depth + 1:
            raise ValueError(f"last_blocks must be at most depth + 1 = {self.depth + 1}, got {last_blocks}")
        if prefix_norm is not None and self.norm_kind != "layer":
            raise ValueError(f"prefix_norm is a LayerNorm; use model.norm_kind='layer', got {self.norm_kind!r}")
        sizes = images if several else (images,)
        masks = mask if isinstance(mask, tuple) else (mask,) * len(sizes)
        norms = prefix_norm if isinstance(prefix_norm, tuple) else (prefix_norm,) * len(sizes)
        train = train and not self.is_initializing()  # while initializing, there are no parameters to stack
        embed = PatchEmbed(self.dim, self.patch_size, jnp.dtype(self.dtype), bias=not self.pre_norm, name="patch_embed")
        embedded = [embed(x.astype(self.dtype)).astype(jnp.float32) for x in sizes]
        learned = self.learned_positions() if self.positions == "learned" else None
        names = [("cls_token", 1)] * self.class_token + [("reg_token", self.registers)] * (self.registers > 0)
        prefix = [self.learned_token(name, count) for name, count in names]
        first_norm = self.make_norm("norm_pre") if self.pre_norm else lambda x: x
        groups = []
        for number, (x, of_size, hidden) in enumerate(zip(embedded, sizes, masks, strict=True)):
            _, height, width, _ = of_size.shape
            grid = patch_grid((height, width), self.patch_size)
            stream = f"dropout{number or ''}"
            if self.positions == "relative" and grid != self.learned_grid:
                raise ValueError(
                    f"relative positions are for a grid of {self.learned_grid} patches, got an "
                    f"image of {grid}; set model.image_size to the size of the images"
                )
            x = first_norm(self.enter(x, grid, prefix, learned, hidden, mask_token, keep))
            rope = self.rope(grid, keep, train, stream) if self.positions == "rope" else None
            drops = [None] * self.depth
            if train and self.drop_path > 0.0:
                drops = self.draw_drops(len(x), axis_name, stream)
            groups.append(vit_blocks.Group(x, drops, attend, rope))
        bias = None
        if self.positions == "relative":
            bias = RelativePositions(self.heads, self.learned_grid, self.class_token, name="rel_pos_bias")()
        outputs: Any = vit_blocks.run(self, groups, bias, min(max(last_blocks, 1), self.depth), train)
        if last_blocks > self.depth:
            outputs = [[group.x for group in groups], *outputs]
        if last_blocks:
            return jnp.stack([of_block[0] for of_block in outputs], axis=1)
        found = self.leave(outputs[-1], tokens, norms)
        return found if several else found[0]

    def tokens(
        self,
        images: Float[Array, "batch height width channels"] | tuple[Float[Array, "_ _ _ channels"], ...],
        train: bool = False,
        axis_name: str | None = None,
        **options: Any,
    ) -> Any:
        """All tokens after the last LayerNorm, [batch, tokens, dim]; a tuple of them for images of several sizes.

        options: mask, mask_token, prefix_norm, keep and attend of `__call__`.
        """
        return self(images, train, axis_name, tokens=True, **options)

    def enter(
        self,
        x: Float[Array, "batch patches dim"],
        grid: tuple[int, int],
        prefix: Sequence[Float[Array, "1 _ dim"]],
        learned: Float[Array, "1 _ dim"] | None,
        mask: Bool[Array, "batch patches"] | None,
        mask_token: Float[Array, " dim"] | None,
        keep: Int[Array, "batch kept"] | None,
    ) -> Float[Array, "batch tokens dim"]:
        """Embedded patches -> the tokens that enter the first block, with their positions."""
        if mask is not None:
            if mask_token is None:
                raise ValueError("mask needs a mask_token, which replaces the masked patches")
            x = jnp.where(mask[..., None], mask_token, x)
        cls_position, positions = self.position_embedding(grid, learned)
        x = x + positions
        if keep is not None:
            x = jnp.take_along_axis(x, keep[..., None], axis=1)
        if self.class_token:
            prefix = [prefix[0] + cls_position, *prefix[1:]]
        return jnp.concatenate([*(jnp.repeat(token, len(x), axis=0) for token in prefix), x], axis=1)

    def leave(
        self, xs: Sequence[Float[Array, "_ _ dim"]], tokens: bool, prefix_norms: Sequence[NormParams | None]
    ) -> tuple[Array, ...]:
        """What `__call__` returns, from the last block's output for each size."""
        if self.pool == "mean":
            if tokens:
                raise ValueError('a model of pool="mean" has no LayerNorm for single tokens; use pool="norm_mean"')
            means = [jnp.mean(x[:, self.num_prefix :], axis=1, dtype=jnp.float32) for x in xs]
            of_means = self.make_norm("fc_norm")
            return tuple(of_means(x) for x in means)
        last_norm = self.make_norm("norm")
        if self.pool == "cls" and not tokens:
            return tuple(last_norm(x[:, 0]) for x in xs)
        count = self.num_prefix
        normed = tuple(
            last_norm(x)
            if own is None
            else jnp.concatenate([normed_by(own, x[:, :count], self.norm_eps), last_norm(x[:, count:])], axis=1)
            for x, own in zip(xs, prefix_norms, strict=True)
        )
        return normed if tokens else tuple(jnp.mean(x[:, self.num_prefix :], axis=1) for x in normed)

    def make_norm(self, name: str | None) -> Any:
        """A norm of tokens outside of the blocks, in float32."""
        return make_norm(self.norm_kind, jnp.float32, name, self.norm_eps)

    def learned_token(self, name: str, count: int) -> Float[Array, "1 count dim"]:
        return self.param(name, nn.initializers.normal(1e-6), (1, count, self.dim), jnp.float32)

    def rope(self, grid: tuple[int, int], keep: Int[Array, "batch kept"] | None, train: bool, stream: str) -> Rope:
        """The rotations of all tokens that enter the blocks. stream: of random numbers."""
        scale = 1.0
        if train and self.rope_jitter > 1.0:
            most = math.log(self.rope_jitter)
            # The same on all devices, so that results do not depend on their number.
            scale = jnp.exp(jax.random.uniform(self.make_rng(stream), minval=-most, maxval=most))
        prefix = self.num_prefix
        rope = rope_rotations(grid, self.dim // self.heads, base=self.rope_base, prefix=prefix, scale=scale)
        if keep is None:
            return rope
        kept = jnp.concatenate([jnp.broadcast_to(jnp.arange(prefix), (len(keep), prefix)), prefix + keep], axis=1)
        sines, cosines = (part[0][kept] for part in rope)
        return sines, cosines

    @property
    def drop_rates(self) -> list[float]:
        """Probability of each block that an image skips one of its branches."""
        grows = stochastic_depth.growing(self.drop_path, self.depth)
        return [self.drop_path] * self.depth if self.drop_path_uniform else grows

    def draw_drops(self, batch: int, axis_name: str | None, stream: str) -> list[Any]:
        """Stochastic depth (arXiv:1603.09382): the `drop` of each `Block`. stream: of random numbers."""
        noise = stochastic_depth.draw(self.make_rng(stream), batch, self.depth, 2, axis_name)
        group = self.drop_path_group
        if not group:
            return stochastic_depth.factors(noise, self.drop_rates)
        if batch % group:
            raise ValueError(
                f"drop_path_group={group} does not divide the {batch} images (views counted) that a "
                f"device takes at a time; use {math.gcd(group, batch)}, another divisor of {batch}, "
                "or 0"
            )
        return stochastic_depth.kept(noise, self.drop_rates, group)

    @property
    def block_options(self) -> dict[str, Any]:
        width = round(self.mlp_ratio * self.dim)
        dtype = jnp.dtype(self.dtype)
        return dict(
            heads=self.heads,
            mlp_width=width,
            mlp=self.mlp,
            layer_scale=self.layer_scale,
            dtype=dtype,
            qkv_bias=self.qkv_bias,
            qk_norm=self.qk_norm,
            eps=self.norm_eps,
            attention=self.attention,
            bias=self.bias,
            norm_kind=self.norm_kind,
        )

    @property
    def num_prefix(self) -> int:
        """Number of tokens before the patches."""
        return int(self.class_token) + self.registers

    def learned_positions(self) -> Float[Array, "1 _ dim"]:
        """The positions of the class token, if it has one, and of the patches of an image of `image_size`."""
        height, width = self.learned_grid
        of_class = int(self.class_token and self.class_position)
        return self.param("pos_embed", weight_init, (1, of_class + height * width, self.dim), jnp.float32)

    def position_embedding(
        self, grid: tuple[int, int], learned: Float[Array, "1 _ dim"] | None
    ) -> tuple[Float[Array, "1 _ dim"], Float[Array, "1 patches dim"]]:
        """(position of the class token, if there is one; positions of the patches, row by row)

        learned: where positions are learned, `learned_positions()`.
        """
        none = jnp.zeros((1, 1, self.dim))
        if self.positions == "sincos":
            return none, sincos_positions(grid, self.dim)
        if learned is None:
            return none, jnp.zeros((1, grid[0] * grid[1], self.dim))
        height, width = self.learned_grid
        of_class = learned.shape[1] - height * width
        first, patches = learned[:, :of_class] if of_class else none, learned[:, of_class:]
        if grid == (height, width):
            return first, patches
        resized = resize_positions(patches.reshape(height, width, self.dim), grid)
        return first, resized.reshape(1, -1, self.dim)


def check_group(model: ViT) -> None:
    """Raises: ValueError for a drop_path_group that does nothing, or does not go together with other options.

    Not a method: Flax wraps methods as parts of the forward pass, which fails in __post_init__.
    """
    group = model.drop_path_group
    if not group or not model.drop_path:
        return
    if group == 1:
        raise ValueError("drop_path_group=1 leaves out no image; use 0 (each image on its own), or more than 1")
    if model.scan and not model.drop_path_uniform:
        raise ValueError("scan needs the same shapes in every block; with drop_path_group use drop_path_uniform=True")
    if model.microbatch % group:
        raise ValueError(f"drop_path_group={group} does not divide microbatch={model.microbatch}; use a divisor of it")
